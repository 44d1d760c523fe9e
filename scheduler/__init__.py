"""Tokenises, admits, composes passes, prunes trees, streams text back. No torch, no ray."""
