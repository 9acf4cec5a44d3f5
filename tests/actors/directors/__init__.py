"""Tests of actors/directors."""
