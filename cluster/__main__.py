"""`python -m cluster` is `outriderd`, for a checkout that is not installed."""

from cluster.cli import app

if __name__ == "__main__":
    app()
