"""Acceptance rules beside the coupled one (workers/target/walk.py)."""
