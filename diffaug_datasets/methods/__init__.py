"""One module per paper. Each reads like the paper; none imports torch until it generates."""
