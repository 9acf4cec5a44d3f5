"""CLIPScores of scenes."""
