"""The public API reproduces the recorded official runs from pixels and prompts, and says what is wrong."""

import jax
import numpy as np
from PIL import Image
import pytest

from tests import golden_model, parity
from tests.infer import recorded
import unilip_jax
from unilip_jax.common import registry
from unilip_jax.convert import importer
from unilip_jax.infer import description
from unilip_jax.infer import model as infer
from unilip_jax.shapes import pretrained
from unilip_jax.weights import stored as stored_lib


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory):
  """The recorded official folder."""
  return recorded.imported(golden, tmp_path_factory.mktemp("hf"), "ckpt/unilip_hf")


@pytest.fixture(scope="module")
def bare(golden, tmp_path_factory):
  """The recorded `.pth`: a tokenizer alone."""
  return recorded.imported(golden, tmp_path_factory.mktemp("pth"), "ckpt/tiny_unilip.pth")


def test_the_package_offers_it_lazily():
  assert unilip_jax.UniLIP is infer.UniLIP
  with pytest.raises(AttributeError, match="nothing"):
    unilip_jax.nothing  # noqa: B018


def test_generate_reproduces_the_recorded_image(golden, model):
  arrays = np.load(golden / "generate_t2i_leftpad.npz")
  image = model.generate(
      "a birthday cake", latents=golden_model.nhwc(arrays["initial_latents"]), output="array")
  assert image.dtype == np.uint8
  np.testing.assert_allclose(
      parity.like(image, arrays["image"]) / 255.0, arrays["image"], atol=1 / 255)


def test_edit_reproduces_the_recorded_image(golden, model):
  arrays = np.load(golden / "generate_edit_leftpad.npz")
  image = model.edit(Image.fromarray(arrays["image_u8"]), "make it red",
                     latents=golden_model.nhwc(arrays["initial_latents"]), output="array")
  np.testing.assert_allclose(
      parity.like(image, arrays["image"]) / 255.0, arrays["image"], atol=1 / 255)


def test_chat_reproduces_the_recorded_answer(golden, model):
  arrays = np.load(golden / "understanding_chat.npz")
  image = arrays["image_u8"][0]
  answer = model.chat(image, "What is this?", max_new_tokens=8)
  text = model._text
  assert answer == text.decode(arrays["unilip_tokens"][0]).strip()
  both = model.chat([image, None], ["What is this?", "And without?"], max_new_tokens=8)
  assert both[0] == answer


def test_a_question_has_no_image_one_or_several(model, monkeypatch):
  asked = []

  def answer(params, images, *_, **options):
    asked.extend([image.shape for image in each] for each in images)
    return ["a"] * len(images)

  monkeypatch.setattr(model._chat, "answer", answer)
  small, wide = np.zeros((4, 4, 3), np.uint8), Image.new("L", (9, 4))
  assert model.chat([[small, wide], wide, None], ["x", "y", "z"]) == ["a"] * 3
  assert asked == [[(4, 4, 3), (4, 9, 3)], [(4, 9, 3)], []]
  with pytest.raises(ValueError, match="image 1 must be"):
    model.chat([small, [small, np.zeros(3, np.uint8)]], ["x", "y"])


@pytest.mark.parametrize("place", ["pretrained/mllm", "pretrained/mllm_hf"])
def test_internvl_alone_chats_as_recorded(golden, tmp_path, place):
  arrays = np.load(golden / "understanding_chat.npz")
  mllm = recorded.imported(golden, tmp_path, place)
  answer = mllm.chat(arrays["image_u8"][0], "What is this?", max_new_tokens=8)
  assert answer == mllm._text.decode(arrays["internvl_tokens"][0]).strip()
  with pytest.raises(ValueError, match="lacks latent_head, decoder, queries, connector, projector, dit"):
    mllm.generate("a red circle")
  with pytest.raises(ValueError, match="lacks latent_head, which encoding"):
    mllm.encode(arrays["image_u8"][0])


@pytest.mark.parametrize("name", ["model", "bare"])
def test_encode_and_reconstruct_reproduce_the_recorded_tokenizer(golden, request, name):
  bare = request.getfixturevalue(name)
  arrays = np.load(golden / "tokenizer_112.npz")
  images = list(arrays["image_u8"])
  latents = bare.encode(images)
  parity.assert_parity("UniLIP.encode", "golden tokenizer_112", np.stack(latents),
                       golden_model.nhwc(arrays["z"]))
  recon = np.stack(bare.reconstruct(images, output="array")) / 255.0
  expected = np.clip((golden_model.nhwc(arrays["recon"]) + 1) / 2, 0, 1)
  np.testing.assert_allclose(parity.like(recon, expected), expected, atol=0.51 / 255 + 1e-4)


def test_results_are_images_of_pil_whose_arrays_are_the_pixels(bare, tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (56, 84, 3)).astype(np.uint8)
  Image.fromarray(image).save(tmp_path / "a.png")
  result = bare.reconstruct(tmp_path / "a.png")
  assert isinstance(result, Image.Image)
  assert np.asarray(result).dtype == np.uint8
  np.testing.assert_array_equal(np.asarray(result), bare.reconstruct(image, output="array"))
  result.save(tmp_path / "b.png")
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(result))


def test_a_first_call_says_once_that_it_compiles(bare, caplog, monkeypatch):
  monkeypatch.setattr(bare, "_announced", set())
  for _ in range(2):
    bare.reconstruct(np.zeros((56, 84, 3), np.uint8))
  assert [r.getMessage().split(":")[0] for r in caplog.records] == [
      "the first call of `reconstruct` compiles its program for the shape, unless an earlier process "
      "kept it on disk"]


def test_print_shows_stage_size_abilities_and_memory(model, bare):
  lines = str(model).splitlines()
  assert "imported from" in lines[0]
  assert lines[2] == "  abilities: encode, reconstruct, chat, generate, edit"
  size = sum(x.nbytes for x in jax.tree.leaves(model._params))
  assert f"{size / 1e6:.3g} MB of weights in float32 on cpu; batch_size: 2" in lines[3]
  assert "abilities: encode, reconstruct\n" in str(bare)
  about = pretrained.read_about("gen3")
  assert description.stage_of("shapes:gen3", about) == "stage gen3, size tiny"


def test_included_weights_name_once_the_words_that_they_do_not_know(model, caplog, monkeypatch):
  monkeypatch.setattr(model, "_unknown_words", registry.find("vocabulary", "shapes"))
  monkeypatch.setattr(model, "_announced", {"generate"})
  monkeypatch.setattr(model._sampler, "_run", lambda *args, **o: np.zeros((1, 112, 112, 3), np.uint8))
  with monkeypatch.context() as adapted:
    adapted.setattr(model._adapters, "weights", {"cakes": 1.0})  # which may have taught them
    model.generate("a birthday cake", steps=1)
  for prompt in ("a red circle", "a birthday cake", "a birthday cake"):
    model.generate(prompt, steps=1)
  message, = (r.getMessage() for r in caplog.records)
  assert "were never shown 'birthday', 'cake'" in message


def test_one_image_in_gives_one_out_of_its_own_size(bare):
  image = np.random.default_rng(0).integers(0, 256, (100, 70, 3)).astype(np.uint8)
  assert bare.reconstruct(image, output="array").shape == image.shape
  assert [x.size for x in bare.reconstruct([image])] == [(70, 100)]
  assert bare.encode(Image.fromarray(image)).shape == (4, 4, 32)


def test_a_sample_is_the_same_in_any_batch(model):
  prompts = ["a red circle", "two cats", "a birthday cake"]
  together = model.generate(prompts, steps=3, seed=5, output="array")
  model._sampler._batch_size, before = 1, model._sampler._batch_size
  try:
    again = model.generate(prompts, steps=3, seed=5, output="array")
  finally:
    model._sampler._batch_size = before
  difference = np.abs(np.stack(together).astype(int) - np.stack(again))
  assert difference.max() <= 1
  other = model.generate(prompts[:1], steps=3, seed=6, output="array")
  assert np.abs(other[0].astype(int) - together[0]).max() > 1


@pytest.fixture
def compiled():
  """Names of the events of every program that is compiled from here on."""
  found = []
  listen = lambda event, seconds, **_: found.append(event) if "backend_compile" in event else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


def test_calls_of_one_shape_compile_once(model, compiled):
  image = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
  calls = {
      "generate": lambda i: model.generate([f"{i} red circles", "a cat"], steps=3, seed=i),
      "edit": lambda i: model.edit(image[i], f"make it {i}", steps=3, seed=i, guidance=1.0 + i),
      "chat": lambda i: model.chat(image[i], f"Is this {i}?", max_new_tokens=8, seed=i),
      "encode": lambda i: model.encode([image[i]] * 2),
      "reconstruct": lambda i: model.reconstruct([image[i]] * 2)}
  jax.jit(lambda x: x + 1)(0)
  assert compiled, "the listener gets no events"
  for name, call in calls.items():
    call(1)
    del compiled[:]
    call(2)
    assert not compiled, f"the second {name} compiled {len(compiled)} programs"


def test_images_of_mixed_sizes_come_back_in_their_order(bare):
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            for size in ((56, 84), (84, 56), (56, 84))]
  together = bare.reconstruct(images, output="array")
  for image, result in zip(images, together):
    assert result.shape == image.shape
    assert np.abs(result.astype(int) - bare.reconstruct(image, output="array")).max() <= 1


def test_keep_size_gives_the_inputs_size_back(model):
  image = Image.new("RGB", (90, 60), "red")
  assert model.edit(image, "make it blue", steps=2, keep_size=True).size == (90, 60)
  assert model.edit(image, "make it blue", steps=2).size == (112, 112)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: m.generate(" "), "prompt 0 is empty"),
    (lambda m: m.generate([]), "no prompt"),
    (lambda m: m.generate("x" * 5000), r"has \d+ tokens.*at most 1008"),
    (lambda m: m.generate("x", steps=0), "steps=0"),
    (lambda m: m.generate("x", latents=np.zeros((1, 2, 2, 32), np.float32)), r"expected \(1, 4, 4, 32\)"),
    (lambda m: m.edit([Image.new("RGB", (9, 9))], ["a", "b"]), "1 images, but 2 instructions"),
    (lambda m: m.edit([np.zeros((9, 9), np.uint8)], ["a"]), "uint8"),
    (lambda m: m.chat(None, [["q", "a"]]), "odd number"),
])
def test_bad_input_is_named(model, call, message):
  with pytest.raises(ValueError, match=message):
    call(model)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: m.generate(None), "prompt 0 is NoneType"),
    (lambda m: m.generate(["a", b"b"]), "prompt 1 is bytes"),
    (lambda m: m.generate("\u200b"), "prompt 0 is empty"),
    (lambda m: m.generate("<IMG_<IMG_CONTEXT>CONTEXT>"), "prompt 0 is empty"),
    (lambda m: m.generate("x", steps=2.5), "steps=2.5"),
    (lambda m: m.generate("x", size=(84, 141)), "size=84x141 .*multiples of 28.*nearest: 84x140, "),
    (lambda m: m.generate("x", size=(448, 448)), "at most 64 tokens .*nearest: 224x224"),
    (lambda m: m.generate("x", size=112), "size=112: give"),
    (lambda m: m.edit(np.zeros((9, 9, 3), np.uint8), "a", size=(84, 140), keep_shape=True), "exclude"),
    (lambda m: m.edit(np.zeros((9, 9, 3), np.uint8), "a", keep_shape=1), "keep_shape=1"),
    (lambda m: m.edit([np.zeros((9, 9, 3), np.uint8), np.zeros((9, 18, 3), np.uint8)], ["a", "b"],
                      keep_shape=True, latents=np.zeros((2, 4, 4, 32), np.float32)), "of 2 sizes"),
    (lambda m: m.generate("x", guidance=float("nan")), "guidance=nan"),
    (lambda m: m.generate("x", guidance=-1), "guidance=-1"),
    (lambda m: m.generate("x", solver="ddim"), "solver='ddim': choose 'dpm' or 'euler'"),
    (lambda m: m.generate("x", seed=1.5), "seed=1.5: a seed is an integer"),
    (lambda m: m.generate("x", seed=None), "seed=None"),
    (lambda m: m.generate("x", output="torch"), "output='torch': choose 'pil' or 'array'"),
    (lambda m: m.edit("a.png", "x", output=None), "output=None"),
    (lambda m: m.reconstruct("a.png", output="np"), "output='np'"),
    (lambda m: m.edit(np.zeros((9, 9, 3), np.uint8), "a", seed=True), "seed=True"),
    (lambda m: m.chat(None, "a", seed="3"), "seed='3'"),
    (lambda m: m.chat(None, "a", seed=2**64), "seed=18446744073709551616"),
    (lambda m: m.generate("x", latents=np.zeros((1, 4, 4, 32), np.int32)), "latents are int32"),
    (lambda m: m.generate("x", latents=np.full((1, 4, 4, 32), np.inf)), "latents hold 512 values"),
    (lambda m: m.edit([], []), "no image was given"),
    (lambda m: m.edit("https://example.com/a.png", "a"), "is a URL"),
    (lambda m: m.edit(np.zeros((9, 9, 3), np.float32), "a"), r"float32\[9, 9, 3\]"),
    (lambda m: m.encode([]), "no image was given"),
    (lambda m: m.reconstruct(np.zeros((3, 90, 90), np.uint8)), "move the channels"),
    (lambda m: m.chat(None, []), "no prompt"),
    (lambda m: m.chat(None, "a", max_new_tokens=0), "max_new_tokens=0"),
    (lambda m: m.chat(None, "a", max_new_tokens=40_000), "at most 32768 fit"),
    (lambda m: m.chat(None, "a", temperature=-0.1), "temperature=-0.1"),
    (lambda m: m.chat(None, "a", top_p=0), "top_p=0"),
    (lambda m: m.chat(None, "a", max_tiles=0), "max_tiles=0"),
    (lambda m: m.chat(None, "a", system=3), "system=3"),
])
def test_unknown_values_are_refused_before_anything_is_computed(model, monkeypatch, call, message):
  never = lambda *args, **options: pytest.fail("computed")
  monkeypatch.setattr(model._sampler, "_run", never)
  monkeypatch.setattr(model._chat, "_run", never)
  with pytest.raises(ValueError, match=message):
    call(model)


@pytest.mark.parametrize(("options", "message"), [
    ({"dtype": "int8"}, "dtype='int8': choose 'bfloat16' or 'float32'; .* int8=True"),
    ({"dtype": "float16"}, "dtype='float16'"), ({"dtype": "bf16"}, "dtype='bf16'"),
    ({"dtype": None}, "dtype=None"), ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": 2.0}, "batch_size=2.0"), ({"int8": "yes"}, "int8='yes'")])
def test_unknown_options_are_refused_before_weights_are_read(monkeypatch, options, message):
  monkeypatch.setattr(infer.loading, "read", lambda *args: pytest.fail("read"))
  with pytest.raises(ValueError, match=message):
    infer.UniLIP.load("shapes:stage1", **options)


@pytest.mark.parametrize(("before", "folders"), [("", ["here"]), ("chosen", [])])
def test_programs_are_kept_on_disk_unless_jax_has_a_folder(monkeypatch, before, folders):
  found, own = [], jax.config.jax_compilation_cache_dir
  monkeypatch.setattr(infer.backend, "enable_compilation_cache", found.append)
  monkeypatch.setattr(infer.loading, "read", lambda *args: 1 / 0)
  jax.config.update("jax_compilation_cache_dir", before)
  try:
    with pytest.raises(ZeroDivisionError):
      infer.UniLIP.load("shapes:stage1", compilation_cache="here")
  finally:
    jax.config.update("jax_compilation_cache_dir", own)
  assert found == folders


_SEEDS = (0, 1, 2**31, 2**32 + 1, 2**63, 2**64 - 1, -1, -2**63, np.int64(-7))


@pytest.mark.parametrize("method", ["generate", "edit", "chat"])
def test_every_seed_of_64_bits_gives_numbers_of_its_own(model, monkeypatch, method):
  image, seen = np.zeros((1, 112, 112, 3), np.uint8), []
  monkeypatch.setattr(model._sampler, "_run", lambda *args, **o: seen.append(args[4]) or image)
  monkeypatch.setattr(model._chat, "_run", lambda *args, **o: seen.append(args[5]) or (
      np.zeros((1, 1), np.int32), [1]))
  calls = {"generate": lambda seed: model.generate("x", seed=seed),
           "edit": lambda seed: model.edit(image[0], "x", seed=seed),
           "chat": lambda seed: model.chat(image[0], "x", seed=seed)}
  for seed in _SEEDS:
    calls[method](seed)
  assert len({np.asarray(x).tobytes() for x in seen}) == len(_SEEDS)


def test_a_large_seed_gives_an_image_of_its_own(model):
  images = [model.generate("a red circle", steps=3, seed=seed, output="array")
            for seed in (5, 2**32 + 5, -5)]
  assert len({x.tobytes() for x in images}) == 3


def test_generation_by_a_tokenizer_alone_is_refused(bare):
  with pytest.raises(ValueError, match="lacks llm, queries, connector, projector, dit, which generation"):
    bare.generate("a red circle")
  with pytest.raises(ValueError, match="lacks llm, which chat"):
    bare.chat(None, "why?")


def test_weights_without_a_tokenizer_or_llm_are_refused(golden, tmp_path):
  with pytest.raises(ValueError, match="holds decoder, encoder: neither a tokenizer"):
    recorded.imported(golden, tmp_path, "pretrained/vae")


def test_a_lost_tokenizer_is_asked_for_before_arrays_are_read(golden, tmp_path, monkeypatch):
  monkeypatch.setattr(stored_lib.Stored, "restore", lambda *args: pytest.fail("read"))
  importer.import_weights([str(golden / "ckpt/unilip_hf")], str(tmp_path / "w"))
  (tmp_path / "w/tokenizer.json").unlink()
  with pytest.raises(ValueError, match=r"tokenizer\.json: absent"):
    infer.UniLIP.load(str(tmp_path / "w"))
