"""Sampling: images from the diffusion transformer, text from the language model."""
