"""Stage files: each is a docstring (command, hardware, scores) and a delta on base.py."""
