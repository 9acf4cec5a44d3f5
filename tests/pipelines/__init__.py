"""Tests of what is chained."""
