"""Converts recorded token rows to this project's layout: prompts right-padded, queries always last."""

import dataclasses

import numpy as np

QUERIES = 16
IMAGE_TOKEN = 261


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Holds prompts and their columns in the recording.

  Attributes:
    tokens: int32[B, L].
    mask: bool[B, L].
    columns: int[B, L + QUERIES], the column of the recording; -1 for pads.
  """

  tokens: np.ndarray
  mask: np.ndarray
  columns: np.ndarray

  def align(self, recorded: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the valid columns, the values of the recording there) of one row."""
    valid = self.columns[row] >= 0
    return np.flatnonzero(valid), recorded[row, self.columns[row, valid]]


def from_training(input_ids: np.ndarray, attention_mask: np.ndarray) -> Prompts:
  """Converts rows as recorded in training: prompt, queries, pads."""
  return _build(input_ids, attention_mask, [
      np.flatnonzero(row) for row in attention_mask.astype(bool)])


def from_sampling(input_ids: np.ndarray, mask: np.ndarray) -> Prompts:
  """Converts rows as recorded in sampling: pads on either side of the text, queries at the end."""
  ids = np.pad(input_ids, ((0, 0), (0, mask.shape[1] - input_ids.shape[1])))
  return _build(ids, mask, [np.flatnonzero(row) for row in mask.astype(bool)])


def _build(ids, mask, valid) -> Prompts:
  length = max(len(v) for v in valid) - QUERIES
  tokens = np.zeros((len(ids), length), np.int32)
  mask = np.zeros((len(ids), length), bool)
  columns = np.full((len(ids), length + QUERIES), -1)
  for row, where in enumerate(valid):
    count = len(where) - QUERIES
    tokens[row, :count], mask[row, :count] = ids[row, where[:count]], True
    columns[row, :count], columns[row, length:] = where[:count], where[count:]
  return Prompts(tokens, mask, columns)
