"""Learning networks of comic characters: features, heads, losses."""
