"""Plans, rows, recipes, seeds and sources: pure, without torch, datasets or the network."""
