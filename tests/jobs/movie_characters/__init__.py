"""Tests of jobs/movie_characters."""
