"""Genres: several for each film, from its key frames."""
