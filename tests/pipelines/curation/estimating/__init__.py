"""Tests of pipelines/curation/estimating."""
