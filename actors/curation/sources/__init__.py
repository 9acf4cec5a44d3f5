"""A video's source becomes a file that can be decoded."""
