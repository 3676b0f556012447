"""Whether a set helps: measures of its images, classifiers trained on it, and how sure the answer is."""
