"""The forward engine that targets and model drafters share."""
