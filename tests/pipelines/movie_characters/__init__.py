"""Tests of pipelines/movie_characters."""
