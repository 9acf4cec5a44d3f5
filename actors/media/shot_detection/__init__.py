"""Cuts, dissolves and fades of a film."""
