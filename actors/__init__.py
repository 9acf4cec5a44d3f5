"""What runs on a worker: pure functions first, then one plain class that loads a model and applies it."""
