"""Tests of actors/curation/exporting."""
