"""ImageNet's validation set gives the same images from its original archive, written tars and folders."""

import io
import tarfile

import numpy as np
from PIL import Image
import pytest

from tests import micro
from unilip_jax.data import pipeline, sources

_COUNT = 11  # does not fill the batches of 4


def _jpeg(i):
  """An image of ImageNet's kind: another size and mode each, landscape and portrait."""
  random = np.random.default_rng(i)
  shape = [(500, 375), (375, 500), (260, 300)][i % 3]
  coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize(shape)
  out = io.BytesIO()
  coarse.convert(("RGB", "L", "CMYK")[i % 3]).save(out, "JPEG", quality=95)
  return out.getvalue()


def _tar(path, members):
  with tarfile.open(path, "w") as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
  """{form: source} of the same images in the same order."""
  root = tmp_path_factory.mktemp("imagenet")
  images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": _jpeg(i) for i in range(_COUNT)}
  _tar(root / "ILSVRC2012_img_val.tar", images)
  for t in range(3):  # of webdataset's writer
    part = list(images.values())[4 * t:4 * t + 4]
    _tar(root / f"imagenet-val-{t:06d}.tar", {
        name: content for i, data in enumerate(part)
        for name, content in ((f"{i:08d}.jpg", data), (f"{i:08d}.cls", b"7"))})
  for i, (name, data) in enumerate(images.items()):
    folder = root / f"val/n{1440764 + i // 4:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  return {"archive": ("tar", f"{root}/ILSVRC2012_img_val.tar"),
          "tars": ("tar", f"{root}/imagenet-val-*.tar"), "folders": ("folder", f"{root}/val")}


@pytest.mark.parametrize(("protocol", "size"), [("pad256", 256), ("448", 448)])
def test_every_form_has_the_same_images_each_once_on_any_number_of_processes(
    forms, tmp_path, protocol, size):
  config = micro.config("stage2", eval__batch_size=4, eval__max_examples=0)
  seen = []
  for form, (kind, path) in forms.items():
    for processes in (1, 2):
      found = {}
      for process in range(processes):
        for batch in pipeline.eval_batches(
            config, form, protocol, sources.SourceSpec(kind, path), process_index=process,
            process_count=processes, workdir=str(tmp_path)):
          assert batch["image"].shape == (4 // processes, size, size, 3)
          real = batch["_mask"]
          assert not found.keys() & set(batch["_id"][real])
          found |= dict(zip(batch["_id"][real].tolist(), batch["image"][real]))
      assert sorted(found) == list(range(_COUNT)), form
      seen.append(np.stack([found[i] for i in range(_COUNT)]))
  for other in seen[1:]:
    np.testing.assert_array_equal(other, seen[0])
