"""Rewards that work and that fail, for the processes of the tests."""

import os
import time

import numpy as np


def brightness(images, records):
  """Mean of each image, 0 to 1."""
  return images.mean((1, 2, 3)) / 255


def doubled(images, records, *, factor=2.0):
  return factor * brightness(images, records)


def dies(images, records):
  os._exit(3)


def hangs(images, records):
  time.sleep(600)


def raises(images, records):
  raise RuntimeError("no weights")


def nan_for_dark(images, records):
  values = brightness(images, records)
  return np.where(values < 0.3, np.nan, values)


def too_few(images, records):
  return np.zeros(len(images) - 1)


def dies_once(images, records):
  """Dies at the first call; the file of that name tells the second process."""
  mark = records[0].data["mark"]
  if not os.path.exists(mark):
    open(mark, "w").close()
    os._exit(9)
  return brightness(images, records)
