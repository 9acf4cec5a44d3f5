"""Tests of actors/media/shot_detection."""
