"""From files to batches: random-access sources, decoding, transforms, the deterministic stream."""
