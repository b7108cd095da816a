"""Reports made from the rows of a run."""
