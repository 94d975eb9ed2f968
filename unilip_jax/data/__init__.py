"""Data: random-access sources, decoding, transforms, the deterministic stream, batches on the devices."""
