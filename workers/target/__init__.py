"""The target: choose, walk, and the group of ranks that serves it."""
