"""Scores that can be added to a finished corpus: one file a family."""
