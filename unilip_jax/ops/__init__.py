"""Functions on arrays that belong to no network: image ranges and resizes, attention kernels."""
