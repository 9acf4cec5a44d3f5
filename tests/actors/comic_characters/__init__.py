"""Tests of actors/comic_characters."""
