"""One module a paper. Each reads like the paper; none imports torch until it generates."""
