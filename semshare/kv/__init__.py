"""Where KV lives: the pool and the sequences over it."""
