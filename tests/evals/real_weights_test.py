"""The Fréchet distance of published weights equals PyTorch: features of EfficientNet-Lite0."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tests import parity
from tests.evals import photos
from unilip_jax.evals import feature_statistics
from unilip_jax.ops import conv

# (repetitions, kernel, stride of the first, expansion)
_BLOCKS = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))


def _efficientnet(tensors, x):
  """EfficientNet-Lite0 (arXiv 1905.11946 without squeeze-and-excitation and with ReLU6): [B, 1280]."""

  def unit(x, name, norm, stride=1, groups=1):
    kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
    x = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=conv.DIMS, feature_group_count=groups,
        precision="highest")
    scale = tensors[f"{norm}.weight"] / jnp.sqrt(tensors[f"{norm}.running_var"] + 1e-3)
    offset = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
    return x * scale[None, None, None] + offset[None, None, None]

  relu6 = lambda x: jnp.clip(x, 0, 6)
  x, index = relu6(unit(x, "_conv_stem", "_bn0", 2)), 0
  for repetitions, _, stride, expansion in _BLOCKS:
    for i in range(repetitions):
      name, y = f"_blocks.{index}", x
      if expansion > 1:
        y = relu6(unit(y, f"{name}._expand_conv", f"{name}._bn0"))
      y = relu6(unit(y, f"{name}._depthwise_conv", f"{name}._bn1", stride if i == 0 else 1, y.shape[-1]))
      y = unit(y, f"{name}._project_conv", f"{name}._bn2")
      x, index = x + y if i else y, index + 1
  return relu6(unit(x, "_conv_head", "_bn1")).mean((1, 2))


def test_frechet_distance_of_real_features_is_equal_in_jax_and_pytorch(reference_programs):
  originals = photos.patches(12, 224)
  pixels = np.concatenate([originals, [_jpeg(x) for x in originals]])
  mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
  images = (pixels.astype(np.float32) / 255 - mean) / std
  expected = reference_programs("efficientnet", {"images": images})
  reference = expected.pop("features")
  features = jax.jit(_efficientnet)(expected, images)
  parity.assert_parity("EfficientNet-Lite0", "its PyTorch package", features, reference)
  jax_distance, torch_distance = (
      feature_statistics.frechet_distance(
          *feature_statistics.Statistics.of(x[:12]).moments(),
          *feature_statistics.Statistics.of(x[12:]).moments())
      for x in (np.asarray(features), reference))
  assert torch_distance > 0.1  # JPEG at quality 5 moves the features
  parity.assert_parity("Fréchet distance of EfficientNet-Lite0", "its PyTorch package", jax_distance,
                       torch_distance)


def _jpeg(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=5)
  return np.asarray(Image.open(buffer))
