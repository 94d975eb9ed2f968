"""Training losses, as functions of arrays."""
