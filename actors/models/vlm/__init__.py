"""Vision-language models: asked about frames, in the worker or behind a service."""
