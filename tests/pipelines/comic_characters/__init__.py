"""Tests of pipelines/comic_characters."""
