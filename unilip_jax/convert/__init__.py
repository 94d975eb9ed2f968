"""PyTorch weights in and out: one engine, one table of names per network."""
