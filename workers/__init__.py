"""The processes that compute: targets and drafters, on one engine."""
