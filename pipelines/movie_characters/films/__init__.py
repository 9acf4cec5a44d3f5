"""Who is on screen in films: faces, tracks, people, timelines."""
