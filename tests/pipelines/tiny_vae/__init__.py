"""Tests of pipelines/tiny_vae."""
