"""Weights from and to PyTorch's formats: one engine, one file of names and configs per network."""
