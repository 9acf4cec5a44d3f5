"""Captions and selections are compared."""
