"""The partition tables: the largest divisible dimension, never the layer axis, and no row in vain."""

import pytest

from unilip_jax.sharding import param_rules

_AUTO = param_rules.AUTOMATIC


def _spec(path, shape, fsdp=4, min_size=1):
  return param_rules.place(path, shape, fsdp, min_size).spec


def test_largest_divisible_dimension_is_split_and_never_the_layer_axis():
  assert _spec("a/kernel", (64, 256)) == (None, "fsdp")
  assert _spec("a/kernel", (256, 30)) == ("fsdp",)
  assert _spec("a/layers/kernel", (64, 8, 6)) == (None, "fsdp")
  assert _spec("a/layers/kernel", (64, 3)) == ()


def test_small_means_small_in_one_layer():
  assert _spec("a/layers/bias", (24, 4096), min_size=2**16) == ()
  assert _spec("a/layers/kernel", (2, 256, 256), min_size=2**16) == (None, None, "fsdp")
  assert param_rules.place("a/bias", (4096,), 4, 2**16).why == "small"


def test_rows_come_before_the_automatic_one():
  assert _spec("llm/embedding", (151_680, 896), 64) == (None, "fsdp")
  assert _spec("llm/head", (896, 151_680), 64) == (None, "fsdp")
  assert _spec("queries/queries", (256, 896), 64) == ()
  assert param_rules.place("queries/queries", (256, 896), 64, 1).why == "row 'queries$'"


def test_a_row_that_does_not_divide_leaves_it_to_the_next_and_says_so():
  placement = param_rules.place("llm/embedding", (4800, 896), 48, 1)
  assert placement.spec == ("fsdp",)
  assert placement.why == "row 'embedding$': 896 does not divide"
  placement = param_rules.place("llm/embedding", (151_680, 896), 36, 1)
  assert placement.spec == ()
  assert placement.why == "no dimension divides by 36"


def test_teacher_and_moments_fall_under_the_networks_own_table():
  assert param_rules.family("teacher/vision_tower/layers/attn/qkv/kernel") == ""
  assert param_rules.family("llm/stack/layers/attn/qkv/kernel") == "llm"


def test_a_row_of_another_rank_is_refused(monkeypatch):
  monkeypatch.setattr(param_rules, "TABLES", {"llm": (("out/kernel$", ("fsdp",)), _AUTO)})
  with pytest.raises(ValueError, match=r"'out/kernel\$' has 1 dimensions.*\(8, 8\)"):
    _spec("llm/layers/out/kernel", (2, 8, 8))


@pytest.mark.parametrize(("table", "message"), [
    ((("embeding$", (None, "fsdp")), _AUTO), "'embeding\\$' of llm matches no parameter"),
    ((("embed", (None, "fsdp")), ("embedding$", ("fsdp", None)), _AUTO),
     "'embedding\\$' of llm is dead: 'llm/embedding' is matched by row 'embed'"),
    ((("embed", (None, "fsdp")),), "llm must end with AUTOMATIC"),
])
def test_rows_that_decide_nothing_are_refused(table, message):
  with pytest.raises(ValueError, match=message):
    param_rules.check(["llm/embedding", "llm/head"], {"llm": table})


def test_tables_of_networks_that_are_not_there_are_not_checked():
  param_rules.check(["mlp1/fc1/kernel"])
