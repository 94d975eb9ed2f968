"""Published datasets and people's own files as shards that training reads (docs/data.md).

  readers.py, json_lists.py   a dataset as it is downloaded -> a stream of items, nothing opened yet
  record.py                   one item -> one sample, or the reason why not: the per-record function
  writers.py, shard.py        samples -> tars or ArrayRecord files, and a receipt for each chunk of items
  manifest.py                 receipts -> manifest.json; resuming; checking
  run.py, beam.py             where chunks are made: here, as one of several jobs, or as a Beam pipeline

What a chunk of items becomes is a pure function of the items and the settings, so that the bytes do not
depend on workers, machines or interruptions. Nothing here starts an accelerator.
"""
