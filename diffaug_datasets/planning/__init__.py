"""From a recipe to a plan on disk: the catalogue of configs, preparing, and what it will cost."""
