"""Shapes, the embedded world: small scenes that are rendered and scored without any download."""
