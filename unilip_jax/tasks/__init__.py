"""What a stage computes: initialisation, the train step and the evaluation functions."""
