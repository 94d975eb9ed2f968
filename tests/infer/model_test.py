"""The public API reproduces the recorded official runs from pixels and prompts, and says what is wrong."""

import numpy as np
from PIL import Image
import pytest

from tests import golden_model, parity
import unilip_jax
from unilip_jax.data import text as text_lib
from unilip_jax.infer import model as infer


@pytest.fixture(scope="module")
def model(golden):
  dims = golden_model.unilip_dims(golden)
  return infer.UniLIP(
      golden_model.unilip_params(golden), dims.tokenizer, dims=dims, dtype="float32", batch_size=2,
      text=text_lib.Text(str(golden / "ckpt/unilip_hf")))


@pytest.fixture(scope="module")
def bare(golden):
  """A tokenizer alone."""
  params = golden_model.tokenizer_params(golden)
  return infer.UniLIP(params, golden_model.tokenizer_dims(golden), dtype="float32")


def test_the_package_offers_it_lazily():
  assert unilip_jax.UniLIP is infer.UniLIP
  with pytest.raises(AttributeError, match="nothing"):
    unilip_jax.nothing  # noqa: B018


def test_generate_reproduces_the_recorded_image(golden, model):
  arrays = np.load(golden / "generate_t2i_leftpad.npz")
  image = model.generate(
      "a birthday cake", latents=golden_model.nhwc(arrays["initial_latents"]))
  assert image.dtype == np.uint8
  np.testing.assert_allclose(image / 255.0, arrays["image"], atol=1.5 / 255)


def test_edit_reproduces_the_recorded_image(golden, model):
  arrays = np.load(golden / "generate_edit_leftpad.npz")
  image = model.edit(Image.fromarray(arrays["image_u8"]), "make it red",
                     latents=golden_model.nhwc(arrays["initial_latents"]))
  np.testing.assert_allclose(image / 255.0, arrays["image"], atol=1.5 / 255)


def test_chat_reproduces_the_recorded_answer(golden, model):
  arrays = np.load(golden / "understanding_chat.npz")
  image = arrays["image_u8"][0]
  answer = model.chat(image, "What is this?", max_new_tokens=8)
  text = model._text
  assert answer == text.decode(arrays["unilip_tokens"][0]).strip()
  both = model.chat([image, None], ["What is this?", "And without?"], max_new_tokens=8)
  assert both[0] == answer


def test_encode_and_reconstruct_reproduce_the_recorded_tokenizer(golden, bare):
  arrays = np.load(golden / "tokenizer_112.npz")
  images = list(arrays["image_u8"])
  latents = bare.encode(images)
  parity.assert_parity("UniLIP.encode", "golden tokenizer_112", np.stack(latents),
                       golden_model.nhwc(arrays["z"]))
  recon = np.stack(bare.reconstruct(images)) / 255.0
  expected = np.clip((golden_model.nhwc(arrays["recon"]) + 1) / 2, 0, 1)
  np.testing.assert_allclose(recon, expected, atol=0.51 / 255 + 1e-4)


def test_one_image_in_gives_one_out_of_its_own_size(bare):
  image = np.random.default_rng(0).integers(0, 256, (100, 70, 3)).astype(np.uint8)
  assert bare.reconstruct(image).shape == image.shape
  assert [x.shape for x in bare.reconstruct([image])] == [image.shape]
  assert bare.encode(Image.fromarray(image)).shape == (4, 4, 32)


def test_a_sample_is_the_same_in_any_batch(model):
  prompts = ["a red circle", "two cats", "a birthday cake"]
  together = model.generate(prompts, steps=3, seed=5)
  model._batch, whole = 1, model._batch
  try:
    again = model.generate(prompts, steps=3, seed=5)
  finally:
    model._batch = whole
  difference = np.abs(np.stack(together).astype(int) - np.stack(again))
  assert difference.max() <= 1
  other = model.generate(prompts[:1], steps=3, seed=6)
  assert np.abs(other[0].astype(int) - together[0]).max() > 1


def test_keep_size_gives_the_inputs_size_back(model):
  image = Image.new("RGB", (90, 60), "red")
  assert model.edit(image, "make it blue", steps=2, keep_size=True).shape == (60, 90, 3)
  assert model.edit(image, "make it blue", steps=2).shape == (112, 112, 3)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: m.generate(" "), "prompt 0 is empty"),
    (lambda m: m.generate([]), "no prompt"),
    (lambda m: m.generate("x" * 5000), r"has \d+ tokens.*at most 1008"),
    (lambda m: m.generate("x", steps=0), "steps=0"),
    (lambda m: m.generate("x", latents=np.zeros((1, 2, 2, 32), np.float32)), "wanted"),
    (lambda m: m.edit([Image.new("RGB", (9, 9))], ["a", "b"]), "1 images, but 2 instructions"),
    (lambda m: m.edit([np.zeros((9, 9), np.uint8)], ["a"]), "uint8"),
    (lambda m: m.chat(None, [["q", "a"]]), "odd number"),
])
def test_bad_input_is_named(model, call, message):
  with pytest.raises(ValueError, match=message):
    call(model)


def test_a_tokenizer_alone_says_what_generation_needs(bare):
  with pytest.raises(ValueError, match="tokenizer alone"):
    bare.generate("a red circle")
