"""Tests of actors/curation/cutting."""
