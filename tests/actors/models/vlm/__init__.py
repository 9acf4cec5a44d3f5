"""Tests of actors/models/vlm."""
