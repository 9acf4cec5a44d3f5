"""Tests of pipelines/curation/sources."""
