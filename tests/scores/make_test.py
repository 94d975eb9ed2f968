"""Images depend on (seed, i, k) alone, not on batches or shares; other settings are refused."""

import json

import numpy as np
from PIL import Image
import pytest

from tests.scores import fakes, judge_server, made_up, made_up_tables
from unilip_jax.common import json_file
from unilip_jax.sampling import sampler
from unilip_jax.scores import base, judging, make, make_record, makers, making


class _Maker:
  """Makes images whose pixels are the bits of prompt, noise and input."""

  image_size, latent_shape = 8, (2, 2, 1)

  def __init__(self, batch_size=5, few_step=""):
    self.batch_size, self.few_step, self.batches = batch_size, few_step, []

  def prompt_length(self, prompt, *, editing):
    return 32 * (1 + len(prompt) // 10)

  def images(self, batch, options):
    self.batches.append(batch)
    inputs = [0] * len(batch.prompts) if batch.inputs is None else [x.mean() for x in batch.inputs]
    return [np.full((8, 8, 3), hash((p, n.tobytes(), x, options)) % 256, np.uint8)
            for p, n, x in zip(batch.prompts, batch.latents, inputs)]


def _make(folder, maker=None, benchmark=None, items=None, share=make.Share(), **settings):  # noqa: B008
  benchmark = benchmark or fakes.Colors()
  maker = maker or _Maker()
  settings = make.Settings(**{"size": 8, **settings})
  record = make.record(benchmark, settings, maker, "float32", False)
  out = make_record.open_folder(folder, record)
  return make.make_images(benchmark, items or benchmark.read_items(""), out, maker, settings, share=share)


def _read(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("noise", ["prompt", "shared"])
def test_images_do_not_depend_on_batches_shares_or_what_was_there(tmp_path, noise):
  assert _make(tmp_path / "one", noise=noise) == 24
  for index in range(3):
    assert _make(tmp_path / "three", _Maker(2), noise=noise, share=make.Share(index, 3)) == 8
  one = _read(tmp_path / "one")
  assert _read(tmp_path / "three") == one
  assert len(set(one.values())) > 12
  (tmp_path / "one/3/00001.png").unlink()
  (tmp_path / "one/7/00000.png").write_bytes(b"half an image")
  Image.new("RGB", (9, 9)).save(tmp_path / "one/8/00000.png")
  assert _make(tmp_path / "one", noise=noise) == 3
  assert _read(tmp_path / "one") == one
  assert _make(tmp_path / "one", noise=noise) == 0


def test_noise_is_of_seed_item_and_sample_alone():
  noise = lambda seed, items, samples: np.asarray(makers.noise(
      seed, np.array(items, np.int32), np.array(samples, np.int32), shape=(2, 2, 1)))
  first = noise(0, [3, 5, 3], [0, 0, 1])
  np.testing.assert_array_equal(first[1], noise(0, [5], [0])[0])
  assert len({x.tobytes() for x in [*first, *noise(1, [3], [0])]}) == 4


def test_shared_noise_is_that_of_the_sample_and_a_file_gives_its_own(tmp_path):
  maker = _Maker(24)
  _make(tmp_path / "a", maker)
  latents = np.concatenate([b.latents for b in maker.batches])
  assert len({x.tobytes() for x in latents}) == 2  # two images an item
  np.save(tmp_path / "n.npy", np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1))
  maker = _Maker(24)
  _make(tmp_path / "b", maker, noise=str(tmp_path / "n.npy"))
  assert {x[0, 0, 0] for b in maker.batches for x in b.latents} == {0.0, 4.0}
  np.save(tmp_path / "n.npy", np.zeros((1, 2, 2, 1), np.float32))
  with pytest.raises(ValueError, match="expected float32 of at least 2"):
    _make(tmp_path / "c", noise=str(tmp_path / "n.npy"))
  (tmp_path / "n.npy").write_bytes(b"junk")
  with pytest.raises(ValueError, match=r"n\.npy is no \.npy file of numbers"):
    _make(tmp_path / "c", noise=str(tmp_path / "n.npy"))
  with pytest.raises(ValueError, match="a seed is an integer"):
    _make(tmp_path / "c", seed=2**70)
  assert not (tmp_path / "c").exists()  # what is refused leaves no record behind


def test_prompts_of_other_lengths_share_no_batch(tmp_path):
  maker = _Maker()
  _make(tmp_path, maker)
  assert all(len({maker.prompt_length(p, editing=False) for p in b.prompts}) == 1 for b in maker.batches)


def test_other_settings_in_the_same_folder_are_refused_by_field(tmp_path):
  _make(tmp_path / "a")
  _make(tmp_path / "a", _Maker(7))  # another batch size changes nothing
  message = r"other settings(.|\n)*steps: 20 there, 30 now\n  seed: 42 there, 1 "
  with pytest.raises(ValueError, match=message):
    _make(tmp_path / "a", options=sampler.Options(steps=30), seed=1)
  (tmp_path / "b").mkdir()
  (tmp_path / "b/1.png").write_bytes(b"x")
  with pytest.raises(ValueError, match="others made its files"):
    _make(tmp_path / "b")


def test_the_record_tells_what_differs_from_the_official_protocol():
  maker = _Maker()
  maker.image_size = 448
  record = make.record(fakes.Colors(), make.Settings(), maker, "bfloat16", False)
  assert (record["protocol"], record["differs_from_official"]) == ("official", [])
  record = make.record(fakes.Colors(), make.Settings(size=512, images_per_item=1), maker, "float32", False)
  assert record["differs_from_official"] == ["size", "precision", "images_per_item"]
  assert record["protocol"] == "free"


def test_a_few_step_network_takes_its_own_settings_and_the_record_names_them():
  maker = _Maker(few_step="mean_flow")
  maker.image_size = 448
  settings = make.Settings(sampler.Options.of(maker.few_step, steps=None, guidance=None))
  record = make.record(fakes.Colors(), settings, maker, "bfloat16", False)
  assert (record["steps"], record["guidance"], record["solver"]) == (4, 1.0, "mean_flow")
  assert (record["protocol"], record["differs_from_official"]) == ("free", ["steps", "guidance", "solver"])


def test_the_noise_of_each_step_is_of_seed_item_and_sample_alone(tmp_path):
  class Steps(_Maker):
    def images(self, batch, options):
      assert batch.fresh.shape == (len(batch.prompts), options.steps, 2, 2, 1)
      return [np.full((8, 8, 3), hash((p, n.tobytes(), f.tobytes())) % 256, np.uint8)
              for p, n, f in zip(batch.prompts, batch.latents, batch.fresh)]

  options = sampler.Options.of("consistency", steps=2)
  _make(tmp_path / "one", Steps(5, "consistency"), options=options, noise="prompt")
  for index in range(2):
    _make(tmp_path / "two", Steps(3, "consistency"), options=options, noise="prompt",
          share=make.Share(index, 2))
  assert _read(tmp_path / "one") == _read(tmp_path / "two")
  first = makers.noise(0, np.zeros(1, np.int32), np.zeros(1, np.int32), shape=(2, 2, 1))
  each = makers.noise(0, np.zeros(1, np.int32), np.zeros(1, np.int32), shape=(2, 2, 1), steps=2)
  assert len({np.asarray(x).tobytes() for x in (*each[0], first[0])}) == 3


@pytest.mark.parametrize(("options", "message"), [
    (["--protocol=official"], "differ from UniLIP's in steps, guidance, solver, size; this checkpoint was "
     r"distilled to a few steps \(mean_flow\): it takes 4 and no guidance"),
    (["--guidance=4.5"], r"guidance=4\.5: this checkpoint was distilled"),
    ([], None)])
def test_the_command_says_what_a_few_step_checkpoint_does(tmp_path, monkeypatch, capsys, options, message):
  maker = _Maker(few_step="mean_flow")
  maker.fingerprint = "f00"
  monkeypatch.setattr(makers, "CheckpointMaker", lambda *args, **options: maker)
  copy = made_up.make("wise", tmp_path / "items")
  run = lambda: making.main(["--benchmark=wise", f"--items={copy.items}", "--checkpoint=x",
                             f"--out={tmp_path}/out", "--compilation_cache=", *options])
  if message:
    with pytest.raises(ValueError, match=message):
      run()
    return
  run()
  assert (f"12 of 12 images made in {tmp_path}/out, 0 were there; protocol free: steps, guidance, solver, "
          "size differ from UniLIP's; this checkpoint was distilled") in capsys.readouterr().out
  assert json.loads((tmp_path / "out/make.json").read_text())["steps"] == 4


def test_edits_read_their_source_and_may_keep_its_size(tmp_path):
  copy, benchmark = made_up.make("imgedit", tmp_path / "items"), base.find("imgedit")
  items = benchmark.read_items(str(copy.items))
  maker = _Maker()
  assert _make(tmp_path / "a", maker, benchmark, items) == 12
  assert all(x.shape == (8, 8, 3) for b in maker.batches for x in b.inputs)
  _make(tmp_path / "b", maker, benchmark, items, keep_size=True)
  assert Image.open(tmp_path / "b/22.png").size == (24, 16)
  (copy.items / "daily object/000000003.jpg").write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"item 43: .*000000003\.jpg: not an image"):
    _make(tmp_path / "c", maker, benchmark, items)
  (copy.items / "daily object/000000003.jpg").unlink()
  with pytest.raises(FileNotFoundError, match=r"item 43: no image"):
    _make(tmp_path / "c", maker, benchmark, items)


def test_a_file_of_four_samples_is_a_grid_row_by_row(tmp_path):
  class Grid(fakes.Colors):
    samples_per_image, images_per_item = 4, 1

  _make(tmp_path / "single", benchmark=fakes.Colors(), noise="prompt", images_per_item=4)
  assert _make(tmp_path / "grid", benchmark=Grid(), noise="prompt") == 12
  grid = np.asarray(Image.open(tmp_path / "grid/3/00000.png"))
  tiles = [np.asarray(Image.open(tmp_path / f"single/3/{k:05d}.png")) for k in range(4)]
  np.testing.assert_array_equal(grid, np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]]))
  assert _make(tmp_path / "grid", benchmark=Grid(), noise="prompt") == 0


_OF_IMAGES = ("wise", "wise-rewrite", "wise-verified", "imgedit", "imgedit-hard", "gedit", "gedit-cn",
              "geneval", "geneval-long", "geneval-hf", "dpg", "dpg-1")


@pytest.mark.parametrize("name", _OF_IMAGES)
def test_images_and_scores_are_equal_on_1_2_and_4_processes(tmp_path, name):
  copy, benchmark = made_up.make(name, tmp_path / "items"), base.find(name)
  items = benchmark.read_items(str(copy.items))
  images, scores = [], []
  with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
    for count in (1, 2, 4):
      folder, out = tmp_path / f"{count}/images", tmp_path / f"{count}/judged"
      for index in range(count):
        _make(folder, benchmark=benchmark, items=items, noise="prompt", share=make.Share(index, count))
      made_up.judge(name, copy, folder, out, server.url)
      images.append(_read(folder))
      scores.append(benchmark.aggregate(str(out), items=str(copy.items)).as_json())
  assert len({i for i in images[0] if "SRCIMG" not in i}) == 12 * benchmark.images_per_item
  assert images[0] == images[1] == images[2]
  assert scores[0] == scores[1] == scores[2]
  assert scores[0]["score"] is not None
  assert (scores[0]["missing"], scores[0]["malformed"]) == (0, 0)


@pytest.mark.parametrize("name", [*made_up_tables.NAMES, "mmvet", "mme folder"])
def test_answers_and_scores_are_equal_on_1_2_and_4_processes(tmp_path, name):
  copy = None
  if name == "mmvet":
    copy = made_up.make(name, tmp_path / "items")
    source, benchmark = copy.items, base.find(name)
  else:
    source = (made_up_tables.make_mme_folder(tmp_path / "items") if name == "mme folder"
              else made_up_tables.make(name, tmp_path / "items"))
    benchmark = base.find(name.split()[0])
  items = benchmark.read_items(str(source))
  assert len(items) >= 12
  written, scores = [], []
  for count in (1, 2, 4):
    out = tmp_path / f"{count}/answers"
    out.mkdir(parents=True)
    new = [make.make_answers(
        benchmark, items, out, made_up_tables.Answerer(), max_new_tokens=4, max_tiles=6,
        share=make.Share(index, count)) for index in range(count)]
    assert sum(new) == len(items)
    written.append((out / "predictions.tsv").read_bytes())
    scored = str(out / "predictions.tsv")
    if copy is not None:
      with judge_server.Server(lambda body, number: judge_server.Answer(copy.answer(body))) as server:
        judging.main([f"--benchmark={name}", f"--items={source}", f"--answers={out}",
                      f"--base_url={server.url}", f"--prompts={copy.prompts}",
                      f"--out={tmp_path}/{count}/judged"])
      scored = f"{tmp_path}/{count}/judged"
    scores.append(benchmark.aggregate(scored, items=str(source)).as_json())
  assert written[0] == written[1] == written[2]
  assert scores[0] == scores[1] == scores[2]
  assert scores[0]["score"] is not None
  assert (scores[0]["missing"], scores[0]["malformed"]) == (0, 0)


class _Answerer:
  """Answers with the size of the image; counts its calls."""

  image_size, batch_size = 8, 5

  def __init__(self):
    self.calls = []

  def answers(self, images, questions, *, max_new_tokens, max_tiles):
    self.calls.append(list(questions))
    return [f"{q} {[i.size for i in each]}" for each, q in zip(images, questions)]


class _Questions(fakes.Colors):
  kind = "understanding"

  def read_items(self, source):
    images = lambda i: (source,) * (i % 3 if i != 5 else 0)
    return [base.Item(str(i), f"question {i}", "a", images=images(i)) for i in range(12)]

  def write_answers(self, path, items, answers):
    json_file.write(path, dict(answers))


def test_answers_are_stored_one_by_one_and_in_batches_of_any_run(tmp_path):
  made_up.write_image(tmp_path / "a.png", 0)
  benchmark, maker = _Questions(), _Answerer()
  items = benchmark.read_items(str(tmp_path / "a.png"))
  options = dict(max_new_tokens=4, max_tiles=1)
  for index in range(2):
    (tmp_path / "out").mkdir(exist_ok=True)
    make.make_answers(
        benchmark, items, tmp_path / "out", maker, share=make.Share(index, 2), **options)
  answers = json.loads((tmp_path / "out/predictions.tsv").read_text())
  assert answers.keys() == {i.id for i in items}
  assert answers["0"] == "question 0 []"
  assert answers["1"] == "question 1 [(24, 16)]"
  assert answers["2"] == "question 2 [(24, 16), (24, 16)]"
  log = tmp_path / "out/answers-0-of-2.jsonl"
  lines = log.read_text().splitlines()
  log.write_text("\n".join(lines[:2]) + "\n" + lines[2][:9])  # killed while writing
  new = make.make_answers(
      benchmark, items, tmp_path / "out", maker, share=make.Share(0, 2), **options)
  assert new == len(lines) - 2
  assert maker.calls[-2:] == maker.calls[:2]  # complete batches, for equal answers
  assert json.loads((tmp_path / "out/predictions.tsv").read_text()) == answers


def test_wrong_arguments_are_answered_before_a_model_is_read(tmp_path):
  copy = made_up.make("geneval", tmp_path / "items")
  start = ["--benchmark=geneval", f"--items={copy.items}", "--checkpoint=absent", f"--out={tmp_path}/o"]
  with pytest.raises(ValueError, match="--process_index=2 is none of 2"):
    making.main([*start, "--process_index=2", "--process_count=2"])
  for name in ("steps", "size", "batch_size", "images_per_item", "max_items", "max_tiles"):
    with pytest.raises(SystemExit, match="2"):
      making.main([*start, f"--{name}=0"])
