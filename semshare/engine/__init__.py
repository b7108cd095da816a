"""Running the model: adapter, executor, sampling, text."""
