"""Tests of actors/curation."""
