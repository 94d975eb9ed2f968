"""Writes published datasets and users' own files as shards that training reads (docs/data.md).

  readers.py, json_lists.py   a downloaded dataset -> a stream of items; opens no image
  record.py                   one item -> one sample, or the reason why it is skipped
  writers.py, shard.py        samples -> tars or ArrayRecord files; a progress file for each chunk of items
  manifest.py                 progress files -> manifest.json; resuming; checking
  run.py, beam.py             makes the chunks in local processes, as one of n jobs, or as a Beam pipeline

The result of a chunk is a pure function of its items and the settings: the bytes do not depend on workers,
machines or interruptions. Nothing here starts an accelerator.
"""
