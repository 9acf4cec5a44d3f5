"""Tests of what is launched."""
