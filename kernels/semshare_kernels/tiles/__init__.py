"""Attention in tiles on a GPU: the program of what each tile reads, and the kernel that runs it."""
