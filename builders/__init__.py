"""One file per real dataset: its facts, what prompts call its classes, and its own folder layout."""
