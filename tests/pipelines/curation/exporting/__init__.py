"""Tests of pipelines/curation/exporting."""
