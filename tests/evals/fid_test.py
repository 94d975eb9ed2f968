"""`evals fid` compares folders of any model's images, names what it leaves out and stores the reference."""

import json
import os
import time

import numpy as np
from PIL import Image
import pytest

from tests.evals import fakes, tiny_inception
from unilip_jax.evals import fid, image_folder, inception
from unilip_jax.weights import fingerprints, restore


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
  """(weights, folder of images, folder of references of two sizes)."""
  root = tmp_path_factory.mktemp("fid")
  for name, seed, size in (("made", 1, 40), ("real", 2, 36)):
    (root / name).mkdir()
    for i, pixels in enumerate(fakes.images(12, size=size, seed=seed)):
      Image.fromarray(pixels[:size - i % 2]).save(root / name / f"{i:02}.png")
  (root / "made" / "notes.txt").write_text("of no image")
  return tiny_inception.write(root), root / "made", root / "real"


@pytest.fixture
def cheap(monkeypatch):
  """Features are 128 pixels, for tests of the command alone: Inception loads and compiles for seconds."""
  def outputs(self, params, x):
    del self, params
    features = x[:, 20::43, 20::43].reshape(len(x), -1)[:, :tiny_inception.FEATURES]
    return features, 3 * features[:, :12]

  monkeypatch.setattr(inception.Extractor, "outputs", outputs)
  monkeypatch.setattr(restore, "read_modules", lambda *args: {inception.MODULE: {}})
  monkeypatch.setattr(fingerprints, "fingerprint", lambda params: "weights")


def _run(setup, capsys, tmp_path, *options, images=None, reference=None):
  weights, made, real = setup
  fid.main([f"--images={images or made}", f"--reference={reference or real}", f"--weights={weights}",
            f"--cache={tmp_path / 'cache'}", "--batch_size=8", "--json", *options])
  return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("cheap")
def test_folders_of_several_sizes_are_compared(setup, capsys, tmp_path):
  result = _run(setup, capsys, tmp_path, "--kernel_subsets=3", "--kernel_size=6")
  assert result["fid"] > 0
  assert (result["n"], result["protocol"], result["splits"]) == (12, "torch-fidelity", 10)
  assert 1 < result["inception_score"] < 12
  assert np.isfinite([result["kernel_distance"], result["kernel_distance_std"]]).all()
  assert [path.rsplit("/", 1)[1] for path in result["left_out"]] == ["notes.txt"]
  assert result["warnings"] == ["12 images with 128 features: the distance is too high"]
  stored = list((tmp_path / "cache").iterdir())
  assert [file.stem for file in stored] == [result["reference"]]
  again = _run(setup, capsys, tmp_path)  # with the stored statistics
  assert again == {k: v for k, v in result.items() if not k.startswith("kernel")}
  with np.load(stored[0]) as z:  # pytorch-fid's form
    np.savez(tmp_path / "others.npz", mu=z["mu"], sigma=z["sigma"])
  other = _run(setup, capsys, tmp_path, reference=tmp_path / "others.npz")
  assert other["fid"] == result["fid"]
  assert other["reference"] == "others.npz: its protocol and weights are not recorded"


@pytest.mark.usefixtures("cheap")
def test_the_formats_of_pytorch_fid_are_read_by_content(setup, capsys, tmp_path):
  _, made, _ = setup
  plain, others = tmp_path / "png", tmp_path / "formats"
  for folder in (plain, others):
    folder.mkdir()
  for i, path in enumerate(sorted(made.glob("*.png"))):
    # Suffixes lie: the content decides. Of the formats that pytorch-fid reads the lossless ones.
    suffix, kind = (("ppm", "PPM"), ("bmp", "BMP"), ("tiff", "TIFF"), ("jpg", "PNG"))[i % 4]
    with Image.open(path) as image:
      image.save(plain / path.name)
      image.save(others / f"{path.stem}.{suffix}", kind)
  for file in (plain / "grey.png", others / "grey.pgm"):
    Image.new("L", (8, 8), 77).save(file)
  first, second = (_run(setup, capsys, tmp_path, images=folder) for folder in (plain, others))
  assert second["fid"] == first["fid"]
  assert (second["n"], second["left_out"]) == (13, [])
  (others / "code.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
  with pytest.raises(ValueError, match=r"code\.png: not an image of a known format"):  # starts no program
    _run(setup, capsys, tmp_path, images=others)


@pytest.mark.usefixtures("cheap")
def test_clean_fids_kernel_distance_takes_its_own_subsets_and_a_seed(setup, capsys, tmp_path):
  run = lambda *options: _run(setup, capsys, tmp_path, "--kernel_subsets=3", *options)
  large = run("--protocol=clean-fid")  # of 1000 images, of which there are 12
  assert large["kernel_subsets"] == "3 of 12, seed 2020"
  assert large["kernel_distance_std"] < 1e-9  # every subset is the complete set
  small = [run("--protocol=legacy_tensorflow", "--kernel_size=6", f"--kernel_seed={seed}")
           for seed in (1, 2)]
  assert small[0]["kernel_distance"] != small[1]["kernel_distance"]


def test_a_folder_has_no_distance_to_itself(setup, capsys, tmp_path):
  _, made, _ = setup
  assert abs(_run(setup, capsys, tmp_path, images=made, reference=made)["fid"]) < 1e-9


@pytest.mark.usefixtures("cheap")
def test_a_changed_image_or_protocol_has_its_own_stored_statistics(setup, capsys, tmp_path):
  _, _, real = setup
  copy = tmp_path / "reference"
  copy.mkdir()
  for path in real.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  first = _run(setup, capsys, tmp_path, reference=copy)
  with Image.open(copy / "03.png") as image:
    Image.fromarray(255 - np.asarray(image)).save(copy / "03.png")
  changed = _run(setup, capsys, tmp_path, reference=copy)
  other = _run(setup, capsys, tmp_path, "--protocol=legacy_pytorch", reference=copy)
  assert changed["fid"] != first["fid"]
  assert {file.stem for file in (tmp_path / "cache").iterdir()} == {
      r["reference"] for r in (first, changed, other)}
  assert len({r["reference"] for r in (first, changed, other)}) == 3


@pytest.mark.usefixtures("cheap")
def test_protocols_differ(setup, capsys, tmp_path):
  distances = [_run(setup, capsys, tmp_path, f"--protocol={p}", "--cache=")["fid"] for p in (
      "torch-fidelity", "pytorch-fid", "clean-fid")]
  assert len(set(distances)) == 3


@pytest.mark.usefixtures("cheap")
def test_unreadable_images_are_all_named(setup, capsys, tmp_path):
  images = tmp_path / "broken"
  images.mkdir()
  for name in ("a.png", "b.jpg"):
    (images / name).write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"2 images cannot be read:\n.*a\.png.*\n.*b\.jpg"):
    _run(setup, capsys, tmp_path, images=images)


@pytest.mark.usefixtures("cheap")
def test_folders_without_images_and_other_statistics_are_refused(setup, capsys, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="empty holds no image"):
    _run(setup, capsys, tmp_path, images=tmp_path / "empty")
  np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
  with pytest.raises(ValueError, match="statistics of 2048 features, the network has 128"):
    _run(setup, capsys, tmp_path, reference=tmp_path / "wide.npz")
  np.savez(tmp_path / "none.npz", mean=np.zeros(2))
  with pytest.raises(ValueError, match=r"none\.npz has no mu and sigma; it holds mean"):
    _run(setup, capsys, tmp_path, reference=tmp_path / "none.npz")


@pytest.mark.usefixtures("cheap")
def test_damaged_statistics_are_named_before_images_are_read(setup, capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(fid, "_Network", lambda options: pytest.fail("weights were read"))
  file = tmp_path / "real.npz"
  np.save(tmp_path / "one.npy", np.zeros(3))
  good = dict(mu=np.zeros(3), sigma=np.eye(3))
  np.savez(file, **good)
  contents = {"has no mu and sigma; it holds one array": (tmp_path / "one.npy").read_bytes(),
              "or damaged": file.read_bytes()[:200], "is no .npz file": b"PK\x03\x04 and more",
              "No data left": b""}
  for message, content in contents.items():
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
      _run(setup, capsys, tmp_path, reference=file)
  for wrong in ({"sigma": np.eye(4)}, {"mu": np.full(3, np.nan)}, {"mu": np.array(["a", "b", "c"])}):
    np.savez(file, **(good | wrong))
    with pytest.raises(ValueError, match="no finite mean and covariance"):
      _run(setup, capsys, tmp_path, reference=file)


def test_pipes_are_no_images_and_the_time_is_linear(tmp_path):
  (tmp_path / "a.png").write_bytes(b"x")
  os.mkfifo(tmp_path / "b.png")
  folder = image_folder.ImageFolder.open(str(tmp_path), "--images")
  assert (folder.names, folder.left_out) == (("a.png",), ("b.png",))

  def seconds(count):
    (place := tmp_path / str(count)).mkdir()
    for i in range(count):
      (place / f"{i}.png").touch()
      (place / f"{i}.txt").touch()
    start = time.perf_counter()
    assert len(image_folder.ImageFolder.open(str(place), "--images").left_out) == count
    return time.perf_counter() - start

  assert seconds(4000) < 40 * max(seconds(400), 1e-3)  # 100 times if it grew with the square
