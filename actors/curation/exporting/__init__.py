"""Kept scenes become clips, frames, shards and files of trainers."""
