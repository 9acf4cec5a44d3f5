"""Tests of what runs on a worker."""
