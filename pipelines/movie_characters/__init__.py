"""Movie characters: who is on screen."""
