"""Who runs the worker: this machine's processes, accelerate's, a cluster's. The worker is the same."""
