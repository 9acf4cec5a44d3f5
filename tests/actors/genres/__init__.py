"""Tests of actors/genres."""
