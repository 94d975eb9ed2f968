"""Benchmarks of the paper and their successors: readers, layouts, judge requests, parsers and aggregation.

One file a benchmark, each a class of `base.Benchmark` and a name in the registry, group "benchmark". Rules
are Python and NumPy; nothing here needs a model, a network or an accelerator.
"""
