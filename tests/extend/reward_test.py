"""The worked example of docs/extend.md: a new reward is one file and one row."""

import numpy as np

from tests.extend import reward_example
from unilip_jax.rewards import base

reward_example.register()


def test_a_new_reward_is_found_by_its_name_with_its_options():
  images = np.array([[0, 2, 128, 255]], np.uint8)[..., None, None]
  for options, expected in (({}, 0.5), ({"margin": 3}, 0.25)):
    (term,) = base.read_terms([("unclipped", 0.5, options)])
    assert term.weight == 0.5
    np.testing.assert_array_equal(term.open()(images, [base.Record("t2i", "a cup", {})]), [expected])
