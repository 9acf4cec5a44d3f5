"""Tests of pipelines/curation/cutting."""
