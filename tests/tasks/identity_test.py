"""A task is identified by the fields that it computes from, and by its tokenizer's content."""

import pytest

from tests import micro
from unilip_jax.ops import program_key
from unilip_jax.tasks import identity, reconstruct


def _key(config):
  return program_key.digest(identity.of(reconstruct.Reconstruct, config))


@pytest.mark.parametrize("field", [
    "compilation_cache", "checkpoint_every_steps", "log__name", "eval__batch_size", "profile_steps"])
def test_fields_of_logs_and_evaluation_do_not_identify_a_task(field):
  value = {"compilation_cache": "x", "log__name": "x", "profile_steps": (1, 2)}.get(field, 7)
  assert _key(micro.config("stage2", **{field: value})) == _key(micro.config("stage2"))


@pytest.mark.parametrize("field", [
    "optimizer__lr", "total_steps", "seed", "grad_accum_steps", "loss__distill"])
def test_fields_of_the_computation_identify_a_task(field):
  assert _key(micro.config("stage2", **{field: 2})) != _key(micro.config("stage2"))


def test_a_tokenizer_counts_by_its_content(tmp_path):
  keys = []
  for folder, content in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "tokenizer.json").write_text(content)
    keys.append(_key(micro.text_config("gen2", text__tokenizer=str(tmp_path / folder))))
  assert keys[0] == keys[1] != keys[2]
