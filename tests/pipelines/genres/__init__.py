"""Tests of pipelines/genres."""
