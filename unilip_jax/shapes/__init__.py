"""Shapes: a plug-in with small scenes that are rendered and scored automatically, without any download."""
