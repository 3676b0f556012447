"""A Hub on loopback: real HTTP, commits, LFS and Xet uploads, faults on demand; unmodified clients talk to it."""
