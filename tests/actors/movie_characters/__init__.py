"""Tests of actors/movie_characters."""
