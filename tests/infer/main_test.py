"""The command line writes what the API returns, and reports user errors as messages."""

import types

import numpy as np
from PIL import Image
import pytest

from unilip_jax.common import errors
from unilip_jax.infer import __main__ as command_line
from unilip_jax.infer import model as model_lib


class _Model:
  """Answers without a network, and records its calls."""

  image_size = 56

  def __init__(self):
    self.calls = []

  def _note(self, name, *args, **options):
    self.calls.append((name, args, options))

  def reconstruct(self, images, *, output):
    self._note("reconstruct", images, output=output)
    return [255 - np.asarray(x) for x in images]

  def generate(self, prompts, **options):
    self._note("generate", prompts, **options)
    return [np.full((56, 56, 3), 10 * i, np.uint8) for i in range(len(prompts))]

  def edit(self, images, prompts, **options):
    self._note("edit", images, prompts, **options)
    return [np.zeros((56, 56, 3), np.uint8) for _ in images]

  def chat(self, images, prompts, **options):
    self._note("chat", images, prompts, **options)
    return [f"answer {i}" for i in range(len(prompts))]


@pytest.fixture
def model(monkeypatch):
  fake = _Model()
  fake.loads = []
  load = lambda path, dtype, **options: fake.loads.append((path, dtype, options)) or fake
  monkeypatch.setattr(model_lib, "UniLIP", types.SimpleNamespace(load=load))
  return fake


@pytest.fixture
def image(tmp_path):
  path = tmp_path / "a.png"
  Image.fromarray(np.arange(40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)).save(path)
  return path


def test_generate_writes_every_image_and_a_grid(model, tmp_path, capsys):
  command_line.main(["generate", "--checkpoint=ckpt", "--prompts", "a cat", "a dog", "--seed=3",
                     "--steps=5", "--guidance=2", "--solver=euler", f"--out={tmp_path}/new/out"])
  out = tmp_path / "new/out"
  assert sorted(p.name for p in out.iterdir()) == ["0000.png", "0001.png", "grid.png"]
  assert (np.asarray(Image.open(out / "0001.png")) == 10).all()
  assert model.loads == [("ckpt", "bfloat16", {"batch_size": 8, "int8": False, "adapters": []})]
  assert model.calls == [("generate", (["a cat", "a dog"],),
                          dict(seed=3, steps=5, guidance=2.0, solver="euler", output="array"))]
  command_line.main(["generate", "--checkpoint=ckpt", "--prompts", "a cat", "--size=84x140",
                     f"--out={tmp_path}/wide"])
  assert model.calls[1][2]["size"] == (84, 140)  # height, width
  assert "wrote 2 images" in capsys.readouterr().out


def test_reconstruct_keeps_sizes_and_writes_a_grid_of_equal_ones(model, image, tmp_path, capsys):
  command_line.main(["reconstruct", "--checkpoint=c", "--images", str(image), f"--out={tmp_path}/o",
                     "--dtype=float32"])
  result = np.asarray(Image.open(tmp_path / "o/0000.png"))
  np.testing.assert_array_equal(result, 255 - np.asarray(Image.open(image)))
  assert (tmp_path / "o/grid.png").exists()
  other = tmp_path / "b.png"
  Image.new("RGB", (20, 20)).save(other)
  (tmp_path / "two").mkdir()
  (tmp_path / "two/grid.png").write_bytes(b"of an earlier command")
  command_line.main(["reconstruct", "--checkpoint=c", "--images", str(image), str(other),
                     f"--out={tmp_path}/two"])
  assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["0000.png", "0001.png"]
  assert "no grid.png: the images have different sizes" in capsys.readouterr().out


def test_one_instruction_serves_all_images(model, image, tmp_path):
  command_line.main(["edit", "--checkpoint=c", "--images", str(image), str(image), "--prompts",
                     "make it red", "--keep_size", "--keep_shape", f"--out={tmp_path}/o"])
  name, (images, prompts), options = model.calls[0]
  assert (name, len(images), prompts) == ("edit", 2, ["make it red"] * 2)
  assert options["keep_size"] is True
  assert options["keep_shape"] is True


def test_chat_prints_questions_and_answers(model, image, capsys):
  command_line.main(["chat", "--checkpoint=c", "--images", str(image), "--prompts", "What is it?",
                     "--temperature=0.5", "--max_new_tokens=7"])
  assert capsys.readouterr().out == "What is it?\n  answer 0\n"
  assert model.calls[0][2]["temperature"] == 0.5
  command_line.main(["chat", "--checkpoint=c", "--prompts", "Hello", "And you?"])
  assert model.calls[1][1] == (None, ["Hello", "And you?"])


def test_an_empty_answer_is_printed_as_none(model, monkeypatch, capsys):
  monkeypatch.setattr(model, "chat", lambda images, prompts, **options: [""])
  command_line.main(["chat", "--checkpoint=c", "--prompts", "Hello"])
  assert capsys.readouterr().out == "Hello\n  (no answer)\n"


@pytest.mark.parametrize(("arguments", "message"), [
    (["reconstruct", "--images", "nothing.png", "--out=o"], "no image nothing.png"),
    (["edit", "--images", "{image}", "{image}", "--prompts", "a", "b", "c", "--out=o"],
     "2 images, but 3 prompts"),
    (["reconstruct", "--images", "{text}", "--out=o"], "broken.png"),
])
def test_a_user_error_is_a_message(model, image, tmp_path, capsys, arguments, message):
  text = tmp_path / "broken.png"
  text.write_text("no image")
  arguments = [a.format(image=image, text=text) for a in arguments]
  with pytest.raises(SystemExit) as stop:
    errors.run_command(lambda: command_line.main([arguments[0], "--checkpoint=c", *arguments[1:]]))
  assert stop.value.code == 1
  printed = capsys.readouterr().err
  assert message in printed
  assert "UNILIP_TRACEBACK" in printed


@pytest.mark.parametrize(("arguments", "message"), [
    (["generate", "--prompts", "a", "--out=o", "--seed=18446744073709551616"], "seed=18446744073709551616"),
    (["generate", "--prompts", "a", "--out=o", "--steps=0"], "steps=0"),
    (["generate", "--prompts", "a", "--out=o", "--size=84"], "--size='84': give HEIGHTxWIDTH"),
    (["edit", "--images", "i", "--prompts", "a", "--out=o", "--size=84x140", "--keep_shape"],
     "size and keep_shape exclude"),
    (["generate", "--prompts", "a", "--out=o", "--solver=ddim"], "solver='ddim'"),
    (["generate", "--prompts", "a", "--out=o", "--guidance=nan"], "guidance=nan"),
    (["generate", "--prompts", "a", " ", "--out=o"], "prompt 1 is empty"),
    (["generate", "--prompts", "a", "--out=o", "--batch_size=0"], "batch_size=0"),
    (["chat", "--prompts", "a", "--max_new_tokens=0"], "max_new_tokens=0"),
    (["chat", "--prompts", "a", "--temperature=-1"], "temperature=-1"),
    (["chat", "--prompts", "a", "--top_p=2"], "top_p=2"),
    (["chat", "--prompts", "a", "--max_tiles=0"], "max_tiles=0"),
    (["reconstruct", "--images", "https://example.com/a.png", "--out=o"], "is a URL"),
])
def test_options_are_checked_before_weights_are_read(model, arguments, message):
  with pytest.raises(ValueError, match=message):
    command_line.main([arguments[0], "--checkpoint=c", *arguments[1:]])
  assert not model.loads


@pytest.mark.parametrize("seed", [5_000_000_000, -1])
def test_every_seed_of_64_bits_is_accepted(model, tmp_path, seed):
  command_line.main(
      ["generate", "--checkpoint=c", "--prompts", "a", f"--seed={seed}", f"--out={tmp_path}/o"])
  assert model.calls[0][2]["seed"] == seed


def test_a_wrong_command_line_is_refused_with_its_usage(capsys):
  with pytest.raises(SystemExit) as stop:
    command_line.main(["paint"])
  assert stop.value.code == 2
  assert "reconstruct" in capsys.readouterr().err
