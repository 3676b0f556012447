"""Pages and pictures of a run, for a person to look at."""
