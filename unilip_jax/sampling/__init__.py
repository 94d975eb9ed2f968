"""Sampling of images from the diffusion transformer, and of text from the language model."""
