"""Parts of the training of the embedded default: one module for each thing that is learned or measured."""
