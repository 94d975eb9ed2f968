"""Vision towers behind one interface (base.py), one file per tower."""
