"""Tests of pipelines/curation/selecting."""
