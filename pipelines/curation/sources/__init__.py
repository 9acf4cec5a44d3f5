"""What is to be cut: metadata files and folders of films."""
