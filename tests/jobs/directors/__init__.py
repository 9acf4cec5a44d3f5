"""Tests of jobs/directors."""
