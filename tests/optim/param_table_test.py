"""The parameter table: first match wins, misspelt rows are refused, rank means the unstacked one."""

import numpy as np
import pytest

from unilip_jax.common import tree
from unilip_jax.optim import param_table

_PARAMS = {
    "vision_tower": {"layers": {"fc": {"kernel": np.zeros((3, 4, 5))}, "ls1": np.zeros((3, 4))},
                     "pos_embed": np.zeros((1, 5, 4))},
    "decoder": {"conv": {"kernel": np.zeros((3, 3, 4, 4)), "bias": np.zeros(4)}}}
_NO_DECAY = ("ln", "bias", "norm", "gamma", "embed")


def test_first_matching_row_wins_per_column():
  table = (("fc", {"lr": 0.5}), ("^vision_tower/", {"lr": 0.1, "train": False}))
  columns = param_table.resolve(_PARAMS, table, _NO_DECAY)
  assert columns["vision_tower/layers/fc/kernel"] == param_table.Columns(False, 0.5, True, "float32")
  assert columns["vision_tower/layers/ls1"].lr == 0.1
  assert columns["decoder/conv/kernel"].train


def test_decay_follows_unstacked_rank_and_names():
  columns = param_table.resolve(_PARAMS, (), _NO_DECAY)
  decayed = [path for path, c in columns.items() if c.decay]
  assert decayed == ["vision_tower/layers/fc/kernel", "decoder/conv/kernel"]


def test_a_row_that_matches_nothing_is_refused():
  with pytest.raises(ValueError, match="matches no parameter"):
    param_table.resolve(_PARAMS, (("^vison_tower/", {"train": False}),), _NO_DECAY)


def test_an_unknown_column_is_refused():
  with pytest.raises(ValueError, match="unknown column"):
    param_table.resolve(_PARAMS, (("decoder", {"learning_rate": 1.0}),), _NO_DECAY)


def test_split_and_merge_are_inverse():
  selected, rest = tree.split(_PARAMS, lambda path: "conv" in path)
  assert set(tree.flatten(selected)) == {"decoder/conv/kernel", "decoder/conv/bias"}
  assert tree.flatten(tree.merge(selected, rest)).keys() == tree.flatten(_PARAMS).keys()
  with pytest.raises(ValueError, match="repeated paths"):
    tree.merge(selected, _PARAMS)
