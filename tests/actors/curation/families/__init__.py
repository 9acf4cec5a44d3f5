"""Tests of actors/curation/families."""
