"""Reads users' own images as they are: folders with captions, lists, Parquet, datasets on disk, tars.

`layouts.py` detects the layout of a path, `source.py` opens it as a source of the kind "own", `apply.py`
sets the rows of a config from `data.own`, `look.py` makes the first look. docs/data.md, "Own images", has
the table.
"""
