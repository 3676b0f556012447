"""What model families are made of: the interface of a loaded model, readers of folders, text encoders, loaders."""
