"""Scenes are captioned."""
