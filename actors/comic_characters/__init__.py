"""Comic characters: which drawn people are the same person."""
