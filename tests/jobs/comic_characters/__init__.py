"""Tests of jobs/comic_characters."""
