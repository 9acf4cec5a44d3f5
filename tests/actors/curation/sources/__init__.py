"""Tests of actors/curation/sources."""
