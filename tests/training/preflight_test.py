"""What a run would fail at is found before it writes or computes anything."""

from etils import epath
import jax
import pytest

from tests import micro
from unilip_jax import train
from unilip_jax.common import paths
from unilip_jax.sharding import mesh as mesh_lib
from unilip_jax.training import preflight, run_files


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  micro.install(monkeypatch)


@pytest.fixture
def images(tmp_path):
  return micro.write_images(tmp_path / "images", 1)


_WRONG = [
    (dict(data__train=(("folder", "nowhere", 1.0),)), "data.train, folder nowhere: path=nowhere does not"),
    (dict(data__train=(("tar", "no/*.tar", 1.0),)), "no file matches no/"),
    (dict(data__train=(("folder", "images/000.jpg", 1.0),)), "is a file; a folder is needed"),
    (dict(data__train=(("tars", "x", 1.0),)), "unknown source 'tars'; known:"),
    (dict(data__train=(("tfds", "mnist", 1.0),)), "expected name:split"),
    (dict(data__train=(("shapes", "trian", 1.0),)), "data.train, shapes trian"),
    (dict(data__train=(("shapes", "train", 1.0, {"cuont": 3}),)), "unknown option cuont"),
    (dict(data__train=(("shapes", "train", 1.0, {"count": 0}),)), "at least 1"),
    (dict(data__train=(("shapes", "train", 1.0, {"same": True}),)), "is for rows of data.edit"),
    (dict(data__train=(("shapes", "train", 1.0, {"same": "no"}),)), "the option same is True or False"),
    (dict(data__train=(("own", "images", 1.0, {"prompt": 5}),)), "the option prompt=5 is no text"),
    (dict(data__train=()), "data.train has no rows"),
    (dict(eval__sets=(("a", "512", "folder", "images"),)), "eval.sets, a: unknown evaluator '512'; known:"),
    (dict(eval__sets=(("a", "224", "folder", "no"),)), "eval.sets, a, folder no: path=no does not exist"),
    (dict(sample_set=("reconstruct", "folder", "no")), "sample_set, folder no"),
    (dict(eval__batch_size=7), "eval.batch_size=7 does not divide over 8 devices"),
    (dict(batch_size=9), "batch_size=9 does not divide over 8 devices"),
    (dict(data__index_dir="images/000.jpg/x"), "is a file, not a folder"),
    (dict(compilation_cache="images/000.jpg"), "compilation_cache=images/000.jpg is a file"),
    (dict(init_from="shapes:stage1,runs/stage1"), "--config=configs/stage1.py:1b --workdir=runs/stage1"),
    (dict(resume="runs/gen1"), "--config.resume=runs/gen1: "),
    (dict(resume="runs/gen1"), "--config=configs/gen1.py:1b --workdir=runs/gen1"),
    (dict(optimizer__lr=-1.0), "--config.optimizer.lr=-1.0"),
]


@pytest.mark.parametrize(("fields", "message"), _WRONG, ids=[m for _, m in _WRONG])
def test_mistakes_leave_no_workdir(images, tmp_path, fields, message, monkeypatch):
  monkeypatch.setattr(train.initial_state, "restore_or_init", lambda *_: pytest.fail("weights were read"))
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    train.train(micro.config("stage1", images, **fields), str(tmp_path / "run"))
  assert message in str(error.value)
  assert not (tmp_path / "run").exists()


def test_a_missing_tokenizer_leaves_no_workdir(tmp_path):
  config = micro.text_config("gen2", text__tokenizer="weights/tokenizer.json")
  with pytest.raises(FileNotFoundError, match=r"there is no tokenizer weights/tokenizer\.json"):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_frozen_weights_of_a_failed_start_are_not_kept(tmp_path, caplog):
  (tmp_path / "run/frozen").mkdir(parents=True)
  run_files.remove_frozen(epath.Path(tmp_path / "run"))
  assert not (tmp_path / "run/frozen").exists()
  assert "holds frozen weights and no checkpoint" in caplog.text


def test_edits_need_rows(images):
  config = micro.text_config("gen2", data__edit=())
  with pytest.raises(ValueError, match=r"data\.edit has no rows"):
    preflight.check_training(config, mesh_lib.config_mesh(config), "run")


def test_prompts_need_rows_beside_those_of_edits(images):
  config = micro.text_config("gen2", data__train=())
  with pytest.raises(ValueError, match=r"data\.train has no rows"):
    preflight.check_training(config, mesh_lib.config_mesh(config), "run")


def test_a_config_without_mistakes_passes_and_writes_nothing(images, tmp_path):
  (tmp_path / "home").mkdir()
  micro.write_images(tmp_path / "home/my [1] images", 1)
  config = micro.config("stage1", images, data__train=(("folder", "~/my [1] images", 1.0),),
                        data__index_dir="~/new/index", data__render_dir="~/new/rendered")
  before = sorted(tmp_path.rglob("*"))
  preflight.check_training(config, mesh_lib.config_mesh(config), "~/runs/a")
  assert sorted(tmp_path.rglob("*")) == before
  assert paths.absolute("~/runs/a") == f"{tmp_path}/home/runs/a"
  assert jax.device_count() == 8
