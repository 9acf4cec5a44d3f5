"""Tests of pipelines/curation/evaluating."""
