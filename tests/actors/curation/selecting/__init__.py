"""Tests of actors/curation/selecting."""
