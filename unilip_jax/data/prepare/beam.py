"""Makes the chunks as an Apache Beam pipeline, for datasets too large for one machine.

The launching process reads the lists and writes each chunk's items to <out>/plan. The pipeline's workers
(of Dataflow, Flink, Spark) write shards and progress files directly to <out>, which all of them must reach
(gs://). Beam may run a chunk twice: both runs write the same bytes, and the last rename wins.
"""

from collections.abc import Iterable, Mapping
import json
import shlex
from typing import Any

from etils import epath

from unilip_jax.data.prepare import manifest, shard, writers
from unilip_jax.data.prepare import run as run_lib

_PLAN = "plan"


def run(
    chunks: Iterable[shard.Chunk], job: shard.Job, sources: list[dict[str, Any]],
    settings: Mapping[str, Any], *, options: str, overwrite: bool = False
) -> dict[str, Any]:
  """Makes the chunks that are not done, as run.run does.

  Args:
    chunks, job, sources, settings, overwrite: see run.run.
    options: of Beam, as on its command lines: "--runner=DataflowRunner --project=… …".

  Raises:
    ValueError: if Beam is not installed.
    RunError: if the pipeline failed.
  """
  try:
    import apache_beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise ValueError("--beam needs Apache Beam: pip install -r requirements-beam.txt, in an "
                     f"environment of its own ({error})") from error

  manifest.begin(job.out, settings, overwrite=overwrite)
  folder = epath.Path(job.out) / _PLAN
  folder.mkdir(parents=True, exist_ok=True)
  paths, count = [], 0
  for chunk in chunks:
    count += 1
    if not shard.is_done(chunk, job):
      if not paths:
        manifest.mark_unfinished(job.out)
      name = f"{chunk.number:05d}.json"
      writers.write_atomically(folder, name, json.dumps([chunk.number, chunk.text]).encode())
      paths.append(str(folder / name))
  if paths:
    parsed = pipeline_options.PipelineOptions(shlex.split(options))
    try:
      with apache_beam.Pipeline(options=parsed) as pipeline:
        _ = (pipeline | "chunks" >> apache_beam.Create(paths) | "spread" >> apache_beam.Reshuffle()
             | "make" >> apache_beam.Map(make, job))
    except RuntimeError as error:  # runners wrap in it what their workers raise
      raise run_lib.RunError(f"the Beam pipeline failed: {error}") from error
  manifest.write_plan(job.out, {"settings": dict(settings), "chunks": count, "sources": sources})
  done = manifest.merge(job.out)
  folder.rmtree()
  return done


def make(path: str, job: shard.Job) -> int:
  """Makes the chunk whose items are at `path`; returns its number."""
  number, text = json.loads(epath.Path(path).read_bytes())
  shard.make(shard.Chunk(number, text), job)
  return number
