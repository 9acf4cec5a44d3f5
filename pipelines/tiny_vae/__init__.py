"""The small VAE encoder that ships, and its training."""
