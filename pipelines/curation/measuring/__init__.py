"""Families of scores, measured beside the features."""
