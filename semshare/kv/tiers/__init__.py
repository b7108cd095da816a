"""Where donors' KV lies below the pool: host memory, disk, Redis or Valkey."""
