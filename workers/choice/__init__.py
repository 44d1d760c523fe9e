"""The choice of a token: what the target decides, and what drafters guess."""
