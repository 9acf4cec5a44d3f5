"""What is measured of every scene."""
