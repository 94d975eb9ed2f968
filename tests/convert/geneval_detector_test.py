"""Detections of transformers' models go through GenEval's rules, each image once, under their name."""

import json

import numpy as np
from PIL import Image
import pytest
import torch

from tests.scores import made_up
from unilip_jax.convert import geneval_detector
from unilip_jax.scores import aggregating, base, result


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Folders of a Mask2Former and a CLIP of random weights, with COCO's number of classes."""
  import transformers

  folder = tmp_path_factory.mktemp("models")
  torch.manual_seed(0)
  names = {i: f"class {i}" for i in range(80)} | {0: "person", 41: "cup", 64: "mouse"}
  swin = transformers.SwinConfig(
      embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64,
      out_features=["stage1", "stage2", "stage3", "stage4"])
  config = transformers.Mask2FormerConfig(
      backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
      decoder_layers=2, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16,
      num_queries=6, id2label=names, label2id={v: k for k, v in names.items()})
  transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "detector")
  (folder / "detector/preprocessor_config.json").write_text(json.dumps(
      {"size": {"height": 64, "width": 64}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
  small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
  clip = transformers.CLIPConfig(
      text_config=dict(vocab_size=300, eos_token_id=1, bos_token_id=0, pad_token_id=1, **small),
      vision_config=dict(image_size=32, patch_size=16, **small), projection_dim=8)
  transformers.CLIPModel(clip).save_pretrained(folder / "clip")
  letters = [c + end for end in ("", "</w>") for c in "abcdefghijklmnopqrstuvwxyz-0123456789"]
  vocab = {t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
  (folder / "clip/vocab.json").write_text(json.dumps(vocab))
  (folder / "clip/merges.txt").write_text("#version: 0.2\n")
  (folder / "clip/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
  return folder


@pytest.fixture(scope="module")
def detector(models):
  return geneval_detector.HfDetector(str(models / "detector"), str(models / "clip"))


def test_boxes_enclose_their_masks_in_the_images_pixels(detector):
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
  found = detector.detect(image)
  assert found
  for boxes, masks in found.values():
    assert masks.shape[1:] == (40, 60)
    for (x0, y0, x1, y1, score), mask in zip(boxes, masks):
      assert 0 <= score <= 1
      inside = np.zeros_like(mask)
      inside[int(y0):int(y1), int(x0):int(x1)] = True
      assert not (mask & ~inside).any()
      assert mask[int(y0)].any()
      assert mask[:, int(x1) - 1].any()
  assert "computer mouse" in detector._names
  assert "mouse" not in detector._names


def test_colours_are_those_of_clips_own_similarity(detector):
  crops = [Image.new("RGB", (20, 30), color) for color in ("red", "blue", "white")]
  colors = detector.colors(crops, "cup")
  text = detector._color_features("cup")
  np.testing.assert_allclose(text.norm(dim=-1), 1.0, rtol=1e-5)
  alone = [detector.colors([crop], "cup")[0] for crop in crops]
  assert colors == alone
  assert detector.colors([], "cup") == []


def test_a_detector_of_other_classes_is_refused(models, tmp_path):
  config = json.loads((models / "detector/config.json").read_text())
  config["id2label"] = {str(i): "x" for i in range(80)}
  for path in (models / "detector").iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="GenEval needs COCO's 80"):
    geneval_detector.HfDetector(str(tmp_path), str(models / "clip"))


class _Counted(made_up.BrightDetector):
  def __init__(self):
    self.calls = 0

  def detect(self, image):
    self.calls += 1
    return super().detect(image)


def test_each_image_is_detected_once_and_the_result_names_the_detector(tmp_path):
  copy, benchmark = made_up.make("geneval", tmp_path / "items"), base.find("geneval-hf")
  items = benchmark.read_items(str(copy.items))
  for i, item in enumerate(items):
    for k in range(4):
      made_up.write_image(tmp_path / "images" / benchmark.output_path(item, k), 10 * i + k, (20, 20))
  detector, arguments = _Counted(), [str(tmp_path / n) for n in ("items", "images", "out")]
  assert geneval_detector.run(*arguments, detector) == 48
  first = (tmp_path / "out/results.jsonl").read_bytes()
  assert geneval_detector.run(*arguments, detector) == 0
  assert (tmp_path / "out/results.jsonl").read_bytes() == first
  made_up.write_image(tmp_path / "images" / benchmark.output_path(items[3], 1), 999, (20, 20))
  assert geneval_detector.run(*arguments, detector) == 1
  assert detector.calls == 49
  aggregating.main(["--benchmark=geneval-hf", f"--source={tmp_path}/out", f"--items={copy.items}",
                    f"--out={tmp_path}/out"])
  scored = result.read(str(tmp_path / "out"))
  assert scored["n"] == 48
  assert scored["judge"]["model"] == "bright"
