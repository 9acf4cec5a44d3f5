"""Backbones that several capabilities use."""
