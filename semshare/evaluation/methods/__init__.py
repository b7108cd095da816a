"""The ways to serve a prompt that the evaluation compares, each a small module over the stages."""
