"""Tests of pipelines/directors."""
