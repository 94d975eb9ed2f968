"""A finished run says so, where its checkpoint is, and the next command of its stage."""

import pytest

from unilip_jax.configs import few_step, gen1, rl_nft, stage2, tiny_mllm
from unilip_jax.training import closing


@pytest.mark.parametrize(("stage", "command"), [
    (stage2, "unilip infer reconstruct --checkpoint='my runs' --images IMAGE"),
    (gen1, "unilip infer generate --checkpoint='my runs' --prompts"), (tiny_mllm, "")])
def test_the_last_lines_name_the_checkpoint_and_the_next_command(stage, command):
  config = stage.get_config("tiny")
  config.total_steps = 300
  lines = closing.text(config, "my runs", 300, trained=True).split("\n  ")
  assert lines[:2] == ["finished: step 300 of 300, checkpoint my runs/checkpoints/300",
                       "unilip report --workdir='my runs'"]
  assert (lines[2].startswith(command) if command else len(lines) == 2)


def test_a_rerun_tells_how_to_continue():
  config = gen1.get_config("tiny")
  config.total_steps = 300
  first = closing.text(config, "runs/mine", 300, trained=False).split("\n")[0]
  assert first == "runs/mine is finished (300 of 300); --config.total_steps=NUMBER continues it"


@pytest.mark.parametrize(("stage", "end"), [
    (gen1, "--guidance=2"), (rl_nft, "--guidance=1"), (few_step, "--out=samples")])
def test_the_next_command_samples_with_the_guidance_of_the_run(stage, end):
  """Weights of reward training are made for none, and a few-step network refuses any."""
  assert closing.text(stage.get_config("tiny"), "runs/mine", 1, trained=True).endswith(end)
