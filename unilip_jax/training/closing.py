"""The last lines of a run's log: that it is finished, where its checkpoint lies, and what to do next."""

import shlex

import ml_collections

from unilip_jax.weights import sources

_GENERATE = 'generate --prompts "PROMPT" --out=samples'
# {task: command of `unilip infer` that takes its weights}
_ABILITIES = {
    "reconstruct": "reconstruct --images IMAGE --out=reconstructed",
    "distill": _GENERATE,  # with the guidance of its teacher inside
    **dict.fromkeys(("generate", "nft", "grpo"), f"{_GENERATE} --guidance={{guidance:g}}")}


def text(config: ml_collections.ConfigDict, workdir: str, step: int, *, trained: bool) -> str:
  """Returns the lines.

  Args:
    config: of the run.
    workdir: of the run.
    step: number of updates that it has.
    trained: whether this start made one of them; False of a run that was finished before.
  """
  count, place = f"{step} of {config.total_steps}", shlex.quote(workdir)
  lines = [f"finished: step {count}, checkpoint {workdir}/{sources.STEPS}/{step}" if trained else
           f"{workdir} is finished ({count}); --config.total_steps=NUMBER continues it"]
  lines += [f"unilip report --workdir={place}"]
  if config.task in _ABILITIES and not config.stage.startswith("tiny_"):
    command = _ABILITIES[config.task].format(guidance=config.sample.guidance)
    lines += [f"unilip infer {command.replace(' ', f' --checkpoint={place} ', 1)}"]
  return "\n  ".join(lines)
