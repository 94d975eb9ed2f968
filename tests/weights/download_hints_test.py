"""Missing weights are answered with the command that makes them."""

import pytest

from unilip_jax.configs import base
from unilip_jax.weights import download_hints, sources


@pytest.mark.parametrize(
    "stage", ["stage1", "stage2", "stage448", "gen1", "gen2", "gen3", "reca", "few_step"])
def test_an_earlier_stage_is_answered_with_its_training(stage, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    sources.open_weights(f"{tmp_path}/runs/{stage}")
  assert f"--config=configs/{stage}.py:1b --workdir={tmp_path}/runs/{stage}" in str(error.value)
  assert "convert import" not in str(error.value)


def test_stages_are_those_that_configs_start_from():
  assert set(download_hints._STAGES) >= {"stage448", "gen1"}
  for path in base.get_config("1b").init_from.split(","):
    assert "convert import --source=hf://" in download_hints.missing_weights_message(path)


def test_a_run_without_a_checkpoint_is_to_be_continued(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(FileNotFoundError, match="holds no finished checkpoint; run the command"):
    sources.open_weights(str(tmp_path))


def test_a_mistyped_path_is_answered_with_the_nearest(tmp_path):
  (tmp_path / "mine").mkdir()
  message = download_hints.missing_weights_message(f"{tmp_path}/minee")
  assert message.startswith(f"no weights at {tmp_path}/minee; did you mean {tmp_path}/mine?")
  assert "convert import" not in message
  assert "did you mean shapes:gen3?" in download_hints.missing_weights_message("gen3")
  assert "did you mean" not in download_hints.missing_weights_message(f"{tmp_path}/other")
