"""Films and images, decoded."""
