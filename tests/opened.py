"""Opens sources of data for tests, with folders of their own."""

from unilip_jax.data import sources


def source(
    kind: str, path: str, *, example: str = "reconstruct", render: str = "", index: str = "",
    **options) -> sources.Source:
  """sources.open_source of one row."""
  return sources.open_source(
      sources.SourceSpec(kind, path, options), example=example, folders=sources.Folders(render, index))
