"""Tests of pipelines/curation."""
