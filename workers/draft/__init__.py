"""Drafters: whatever proposes tokens ahead of the target."""
