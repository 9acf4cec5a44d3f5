"""One decode of a film becomes rows of scenes."""
