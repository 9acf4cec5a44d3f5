"""Tests of actors/core."""
