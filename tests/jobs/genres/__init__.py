"""Tests of jobs/genres."""
