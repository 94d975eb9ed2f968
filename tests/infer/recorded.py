"""Loads the recorded folders of the official code."""

from unilip_jax.convert import importer, reading
from unilip_jax.infer import model


def imported(golden, folder, place):
  """Imports a recorded folder and loads it."""
  out = folder / "w"
  importer.import_weights(
      [str(golden / place)], str(out), options=reading.Options(vit_heads=4))
  return model.UniLIP.load(str(out), dtype="float32", batch_size=2)
