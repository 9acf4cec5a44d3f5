"""Tests of actors/curation/features."""
