"""Who is in a picture: faces and bodies, found and embedded."""
