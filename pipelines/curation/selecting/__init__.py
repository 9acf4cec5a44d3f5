"""Which scenes are kept, why, and what people label."""
