"""One of two processes that evaluate a set together; prints the scores as JSON."""

import json
import sys
import types

import jax


def main() -> None:
  rank, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)

  # After the start: importing these must not touch a device before it.
  from tests.evals import fakes
  from unilip_jax.evals import base, reconstruction
  from unilip_jax.sharding import mesh as mesh_lib
  from unilip_jax.training import metrics

  # Of this evaluator alone: the others read real batches.
  reconstruction.pipeline = types.SimpleNamespace(eval_batches=fakes.eval_batches_of(fakes.images(13)))
  mesh = mesh_lib.make_mesh()
  base.Context.inception = fakes.extractor(mesh)
  evaluate = base.make_evaluators(
      fakes.config(8), fakes.task(), mesh, workdir, per_example=True)["set"]
  scores = evaluate({"gain": mesh_lib.put(fakes.GAIN, mesh_lib.replicated(mesh)).astype("float32")})
  scores |= fakes.scores_on_shapes(mesh, f"{workdir}/shapes")
  with metrics.Writer(workdir, start_step=0) as writer:  # process 0 writes, all read the same
    writer.write(1, {f"eval/{name}": value for name, value in scores.items()})
    assert writer.has_evaluation(1)
    assert not writer.has_evaluation(2)
  print(json.dumps(scores))


if __name__ == "__main__":
  main()
