"""Tests of actors/media."""
