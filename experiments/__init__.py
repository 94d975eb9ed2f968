"""Studies of the Shapes world: run from a checkout, not installed."""
