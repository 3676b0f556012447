"""Real data in, finished datasets out."""
