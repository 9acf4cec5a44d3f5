"""Tests of actors/models."""
