"""Attention in tiles: the program of what each tile reads, and what runs it on each device."""
