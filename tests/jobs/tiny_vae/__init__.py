"""Tests of jobs/tiny_vae."""
