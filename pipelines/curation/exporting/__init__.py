"""Kept scenes become clips and files of trainers."""
