"""Settings of adapters are refused with what is wrong in them."""

import pytest

from unilip_jax.weights import adapters


def test_a_weight_that_is_no_number_is_named(tmp_path):
  with pytest.raises(ValueError, match="weight 'strong' is no number"):
    adapters.check_exists(adapters.parse(f"{tmp_path}:strong")[0])
  with pytest.raises(FileNotFoundError, match="none:strong does not exist"):
    adapters.check_exists(adapters.parse(f"{tmp_path}/none:strong")[0])
