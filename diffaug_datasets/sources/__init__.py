"""Real images in: the folders, Hub datasets and pools that a recipe names, read once and known by their content."""
