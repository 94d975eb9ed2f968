"""data.own sets the rows of every stage; the stream that it gives resumes at any position, bit for bit."""

import jax
import numpy as np
import pytest

from tests import micro
from tests.data.own import folders
from unilip_jax import tasks
from unilip_jax.configs import checks, gen2, roots, stage1
from unilip_jax.data import batch as batch_lib
from unilip_jax.data import pipeline
from unilip_jax.data.own import apply
from unilip_jax.plan import inputs


@pytest.fixture(autouse=True)
def micro_preset(monkeypatch):
  micro.install(monkeypatch)


def _talk(folder):
  return folders.write(folder, {f"{i}.png": folders.png(i) for i in range(3)} | {
      "talk.jsonl": folders.lines(*({"image": f"{i}.png", "turns": [["what?", f"thing {i}"]]}
                                    for i in range(3)))})


_LAYOUTS = {"images": folders.captioned, "list": folders.imagefolder, "parquet": folders.parquets,
            "arrow": folders.saved_dataset, "edits": folders.edits, "talk": _talk}


def _config(stage, folder, **fields):
  c = micro.text_config(stage, **{"data__own": str(folder), "batch_size": 8, **fields})
  checks.check(c)
  return apply.apply(c)


def _batches(config, workdir, start, count):
  stream = pipeline.train_stream(
      config, start_position=start, process_index=0, process_count=1, workdir=str(workdir))
  try:
    return [next(stream) for _ in range(count)]
  finally:
    stream.close()


@pytest.mark.parametrize(("stage", "layout"), [
    *(("gen2", layout) for layout in ("images", "list", "parquet", "arrow", "edits")),
    ("stage1", "images"), ("stage1", "parquet"), ("tiny_mllm", "talk")])
def test_the_stream_resumes_at_any_position(stage, layout, tmp_path):
  config = _config(stage, _LAYOUTS[layout](tmp_path / "own"))
  whole = _batches(config, tmp_path, 0, 3)
  rest = _batches(config, tmp_path, 16, 1)
  jax.tree.map(np.testing.assert_array_equal, whole[2], rest[0])
  parts = batch_lib.parts(whole[0])
  assert {*parts} == ({"edit" if layout == "edits" else "t2i"} if stage == "gen2" else {""})
  assert sum(len(part["_id"]) for part in parts.values()) == 8


@pytest.mark.parametrize(("stage", "layout", "train", "edit"), [
    ("stage1", "images", 1, 0), ("gen2", "images", 1, 0), ("gen3", "edits", 0, 1),
    ("tiny_mllm", "talk", 1, 0)])
def test_rows_of_a_stage_are_replaced_once(stage, layout, train, edit, tmp_path):
  folder = _LAYOUTS[layout](tmp_path / "own")
  config = _config(stage, folder, data__own_prompt="all")
  row = ("own", str(folder), 1.0, {"prompt": "all"})
  if stage.startswith("gen"):
    assert (config.data.train, config.data.edit) == ((row,) * train, (row,) * edit)
    assert config.data.edit_share == float(edit)
  else:
    assert config.data.train == (row,)
  before = config.to_json()
  assert apply.apply(config).to_json() == before
  assert str(folder) in {path for _, path in inputs.roots.inputs(config)}


def test_samples_and_sets_of_the_stage_show_own_images_and_chosen_ones_stay(tmp_path, caplog):
  folder = folders.captioned(tmp_path / "own")
  config = stage1.get_config("1b")
  config.data.own = str(folder)
  apply.apply(config)
  assert config.sample_set == ("reconstruct", "own", str(folder))
  assert config.eval.sets == (("own", "native", "own", str(folder)),)
  config = gen2.get_config("tiny")
  sets = config.eval.sets
  config.data.own = str(folder)
  apply.apply(config)
  assert config.sample_set == ("t2i", "own", str(folder))
  # Shapes are rendered: what the model forgets is still scored, under names that say so.
  assert config.eval.sets == tuple((f"shapes_{name}", *row) for name, *row in sets)
  assert "shapes_t2i" in caplog.text
  assert "whether old knowledge is kept" in caplog.text
  chosen = stage1.get_config("1b")
  chosen.data.own, chosen.eval.sets = str(folder), (("mine", "native", "folder", "mine"),)
  assert apply.apply(chosen).eval.sets == (("mine", "native", "folder", "mine"),)


def test_a_run_that_writes_into_its_own_data_is_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "photos").mkdir()
  (tmp_path / "link").symlink_to("photos")
  config = gen2.get_config("tiny")
  apply.check_workdir(config, "photos")  # it trains on other data
  config.data.own = "photos"
  for workdir in ("photos", f"{tmp_path}/photos/", "./photos/run", "link/run"):
    with pytest.raises(ValueError, match=r"lies in data.own=photos: .* e.g. --workdir=runs/mine"):
      apply.apply(config, workdir)
  for workdir in ("photos2", "runs/photos", "."):  # data may lie below a workdir
    apply.check_workdir(config, workdir)


def test_own_data_lies_below_the_root(tmp_path):
  folders.captioned(tmp_path / "own")
  config = micro.text_config("gen2", data__own="own", root=str(tmp_path))
  apply.apply(roots.apply(config))
  assert config.data.train == (("own", f"{tmp_path}/own", 1.0),)
  config = stage1.get_config("1b")
  config.data.own, config.root = "own", str(tmp_path)
  apply.apply(roots.apply(config))
  assert config.eval.sets == (("own", "native", "own", f"{tmp_path}/own"),)


@pytest.mark.parametrize(("stage", "layout", "message"), [
    ("gen2", "bare", "which can train reconstruct; gen2 needs images with captions, or edits.*own_prompt="),
    ("gen2", "talk", r"talk.jsonl \(list\), which can train understand or reconstruct; gen2 needs"),
    ("tiny_mllm", "images", "needs conversations about images"),
    ("gen1", "edits", "trains on text→image alone")])
def test_data_that_a_stage_cannot_use_is_refused(stage, layout, message, tmp_path):
  make = {"bare": lambda f: folders.write(f, {"a.png": folders.png(1)})} | _LAYOUTS
  with pytest.raises(ValueError, match=message):
    tasks.make(_config(stage, make[layout](tmp_path / "own")))


@pytest.mark.parametrize(("fields", "message"), [
    (dict(data__own_prompt="x"), r"data.own_prompt='x' is of data.own: set --config.data.own=FOLDER too"),
    (dict(data__own="a", data__own_layout="zip"), "own_layout='zip': choose 'images' or 'list'"),
    (dict(data__own="hf://a/b"), "hf://")])
def test_wrong_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    checks.check(micro.text_config("gen2", **fields))


def test_a_batch_of_edits_alone_has_a_step(tmp_path):
  config = _config("gen2", folders.edits(tmp_path / "own"))
  task = tasks.make(config)
  spec = task.batch_spec(8)
  assert {*spec} == {"edit"}
  _, metrics = jax.eval_shape(task.train_step, task.state_shapes(), spec)
  assert {"edit_loss", "loss"} <= {*metrics}
  assert "t2i_loss" not in metrics
