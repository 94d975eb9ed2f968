"""The adapter of transformers' Mask2Former and CLIP, on tiny random networks."""

import io
import json

import numpy as np
from PIL import Image
import pytest
import tokenizers
import torch
import transformers

from unilip_jax.convert import geneval_hf
from unilip_jax.scores import geneval, geneval_rules


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """(folder of a Mask2Former, folder of a CLIP), random weights."""
  folder = tmp_path_factory.mktemp("networks")
  torch.manual_seed(0)
  swin = transformers.SwinConfig(
      image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
      out_features=["stage1", "stage2", "stage3", "stage4"])
  config = transformers.Mask2FormerConfig(
      backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
      encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
      num_attention_heads=2, num_queries=6, id2label={0: "cup", 1: "mouse"})
  transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "detector")
  transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 64}, num_labels=2).save_pretrained(
      folder / "detector")
  words = {w: i for i, w in enumerate(["<pad>", "a", "photo", *geneval_rules.COLORS, "cup"])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
  clip = transformers.CLIPConfig(
      text_config={**size, "vocab_size": len(words), "eos_token_id": words["cup"]},
      vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=8)
  transformers.CLIPModel(clip).save_pretrained(folder / "clip")
  transformers.CLIPProcessor(
      transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
      transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")).save_pretrained(
          folder / "clip")
  return str(folder / "detector"), str(folder / "clip")


def _png(seed, size=(40, 30)):
  pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "PNG")
  return out.getvalue()


def test_boxes_enclose_their_masks(networks):
  detector = geneval_hf.Detector(*networks)
  found = detector.detect(Image.open(io.BytesIO(_png(0))))
  assert found
  assert found.keys() <= {"cup", "computer mouse"}
  for boxes, masks in found.values():
    assert masks.shape[1:] == (30, 40)
    for (x0, y0, x1, y1, _), mask in zip(boxes.astype(int), masks):
      assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
      assert mask[y0].any()
      assert mask[:, x1 - 1].any()


def test_colors_are_those_of_the_nearest_prompts(networks):
  detector = geneval_hf.Detector(*networks)
  crops = [Image.open(io.BytesIO(_png(seed))) for seed in range(3)]
  together = detector.colors(crops, "cup")
  assert together == [detector.colors([crop], "cup")[0] for crop in crops]
  assert set(together) <= set(geneval_rules.COLORS)


def test_a_mask_without_pixels_has_an_empty_box():
  assert geneval_hf.box_around(np.zeros((4, 4), bool), 0.5) == [0, 0, 0, 0, 0.5]


class _Counting:
  """Finds one cup in every image and counts its calls."""

  name = "counting"
  calls = 0

  def detect(self, image):
    self.calls += 1
    return {"cup": (np.array([[0, 0, 5, 5, 0.9]], np.float32), None)}

  def colors(self, crops, class_name):
    return ["red"] * len(crops)


def test_a_rerun_judges_changed_and_new_images_alone(tmp_path):
  record = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "cup"}
  for index in range(3):
    samples = tmp_path / f"images/{index:05d}/samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(record))
    (samples / "00000.png").write_bytes(_png(index))
  detector, options = _Counting(), geneval_rules.Options()
  arguments = (str(tmp_path / "images"), str(tmp_path / "out"), detector, options)
  assert geneval_hf.judge_folder(*arguments) == {"judged": 3, "kept": 0}
  results = tmp_path / "out/results.jsonl"
  first = results.read_text()
  results.write_text(first[:-20])  # killed while it wrote the last line
  assert geneval_hf.judge_folder(*arguments) == {"judged": 1, "kept": 2}
  assert results.read_text() == first
  (tmp_path / "images/00001/samples/00000.png").write_bytes(_png(9))
  assert geneval_hf.judge_folder(*arguments) == {"judged": 1, "kept": 2}
  assert detector.calls == 5
  assert geneval.GenEvalHf().aggregate(str(tmp_path / "out")).score == 1
