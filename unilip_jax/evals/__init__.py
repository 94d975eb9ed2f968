"""Evaluators: metrics of a model on a data set, every example counted exactly once."""
