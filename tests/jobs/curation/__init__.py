"""Tests of jobs/curation."""
