"""The plug-in is found by name, its old names are refused with the new ones, and rows take options."""

import pytest

from tests import opened, saved
from unilip_jax.common import registry
from unilip_jax.data import text as text_lib
from unilip_jax.report import metric_labels
from unilip_jax.shapes import captions, pretrained, scene
from unilip_jax.weights import sources


@pytest.mark.parametrize("group", ["weights", "source", "tokenizer", "metric"])
def test_what_it_adds_is_found_by_name(group):
  assert "shapes" in registry.names(group)
  assert "blocks" not in registry.names(group)


@pytest.mark.parametrize("name", pretrained.names())
def test_included_weights_open_by_prefix(name):
  weights = sources.open_weights(f"shapes:{name}")
  assert weights.modules >= set(weights.model["modules"])
  assert weights.model["origin"]["steps"] > 0


def test_gen3_holds_the_complete_model():
  modules, model = saved.load("shapes:gen3")
  assert {"vision_tower", "mlp1", "latent_head", "decoder", "llm", "connector", "dit"} <= set(modules)
  assert model["generate"]


@pytest.mark.parametrize("name", ["blocks:gen3", "blocks:nothing"])
def test_the_old_prefix_is_refused_with_the_new_one(name):
  with pytest.raises(ValueError, match="'shapes:NAME'"):
    sources.open_weights(name)


def test_the_old_kind_of_data_is_refused_with_the_new_one(tmp_path):
  with pytest.raises(ValueError, match=r"of kind 'shapes' now.*'count': 2048, 'paraphrased': True"):
    opened.source("blocks", "train:2048:wishes", render=str(tmp_path), index=str(tmp_path))


def test_the_old_tokenizer_is_refused_with_the_new_one():
  with pytest.raises(ValueError, match="called 'shapes' now"):
    text_lib.Text("blocks")


def test_unknown_names_are_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"unknown source 'shape'; known: .*shapes"):
    registry.find("source", "shape")


def _open(folder, path, **options):
  return opened.source("shapes", path, render=str(folder), index=str(folder), **options)


def test_rows_take_options(tmp_path):
  assert len(_open(tmp_path, "train", count=3)) == 3
  paraphrased = _open(tmp_path, "train", example="t2i", count=2, paraphrased=True)
  assert paraphrased[0].parts["text"].startswith(b"please draw ")
  assert len(_open(tmp_path, "test", count=1, sizes=("large",))) == 1
  edit = _open(tmp_path, "unseen", example="edit", count=1)
  assert set(edit[0].parts) == {"cond_image", "image", "text"}


@pytest.mark.parametrize("path", ["train:2048", "train::wishes", "heldout"])
def test_a_path_is_a_split_alone(path, tmp_path):
  with pytest.raises(ValueError, match=", ".join(scene.SPLITS)):
    _open(tmp_path, path)


def test_unknown_options_are_refused(tmp_path):
  with pytest.raises(ValueError, match="paraphrased"):
    _open(tmp_path, "train", wishes=True)


def test_every_metric_of_t2i_has_a_label():
  labels = metric_labels.table()
  assert {f"missed_{demand}" for demand in captions.DEMANDS} <= set(labels)
  assert labels["score"].higher_is_better
  assert labels["missed_shape"].higher_is_better is False
