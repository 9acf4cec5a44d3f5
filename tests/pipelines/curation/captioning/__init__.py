"""Tests of pipelines/curation/captioning."""
