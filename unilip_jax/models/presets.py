"""Dimensions of every network at sizes tiny, 1b and 3b.

1b and 3b are the published dimensions (UniLIP, arXiv 2507.23278: InternVL3-1B/2B, dc-ae-f32c32-sana-1.1,
SANA 0.6B/1.6B); they are named after the LLM's parameters as UniLIP's releases are. `tiny` keeps every kind
of layer at a size that trains on a laptop's CPU at 112 px. Modules take these dataclasses and have no sizes
of their own. A checkpoint stores them with its weights (`model.json`), so that it never depends on this
file.

Names of fields: `depth` counts layers, `width` is the channels of the residual stream, `mlp` the hidden
channels of a feed-forward part, `heads` the heads of attention, each of `head_dim` channels. A size is a
row of the group "size" in common/registry.py; a plug-in adds its own, e.g. with another vision tower.
"""

import dataclasses
from typing import Any, ClassVar

from unilip_jax.common import rectangles, registry
from unilip_jax.models.vision import base as vision


@dataclasses.dataclass(frozen=True)
class VitDims(vision.VisionDims):
  """InternViT (models/vision/internvit.py)."""

  kind: ClassVar[str] = "internvit"

  depth: int
  width: int
  heads: int
  mlp: int
  patch: int  # pixels per side of a patch
  image_size: int  # pixels per side for which positions are stored; others are interpolated
  layer_scale_init: float = 0.1  # InternViT's initializer_factor
  init_std: float = 0.02  # of kernels and positions at the start (official)

  @property
  def grid(self) -> int:
    """Patches per side of the stored position embedding."""
    return self.image_size // self.patch

  @property
  def pixels_per_token(self) -> int:
    """Pixels per side of one token of 2×2 patches."""
    return 2 * self.patch

  @property
  def token_width(self) -> int:
    """Channels of one token, which are those of its four patches."""
    return 4 * self.width


@dataclasses.dataclass(frozen=True)
class DcaeDims:
  """One half (encoder or decoder) of DC-AE (models/dcae.py); lists run from pixels to latent."""

  latent_channels: int
  channels: tuple[int, ...]
  layers: tuple[int, ...]  # blocks per stage; 0 layers in the outermost stage drops its blocks
  blocks: tuple[str, ...]  # "ResBlock" | "EfficientViTBlock" per stage
  qkv_multiscales: tuple[tuple[int, ...], ...]
  head_dim: int
  norms: tuple[str, ...]  # "rms_norm" | "batch_norm" per stage
  acts: tuple[str, ...]  # "silu" | "relu" | "relu6" per stage
  resample: str  # decoder "interpolate" | "pixel_shuffle"; encoder "Conv" | "pixel_unshuffle"
  shortcut: bool = True  # around the convolution at the latent's side
  conv_act: str = "relu"  # decoder only: before the last convolution
  scaling_factor: float = 0.41407  # latents × factor have unit variance (dc-ae-f32c32-sana-1.1)

  @property
  def pixels_per_latent(self) -> int:
    """Pixels per side of one latent: every stage but the first halves the sides."""
    return 2 ** (len(self.channels) - 1)


@dataclasses.dataclass(frozen=True)
class DiscriminatorDims:
  """Patch discriminator (models/discriminator.py)."""

  stem: int  # channels after the first 5×5 convolution
  channels: tuple[int, ...]  # of the three strided stages
  groups: int = 32
  pool: int = 16  # side of the adaptive max-pool's output


@dataclasses.dataclass(frozen=True)
class VggDims:
  """VGG16 for LPIPS (models/lpips_trunks.py): channels and number of convolutions of each slice."""

  channels: tuple[int, ...] = (64, 128, 256, 512, 512)
  convs: tuple[int, ...] = (2, 2, 3, 3, 3)


@dataclasses.dataclass(frozen=True)
class ConvNextDims:
  """ConvNeXt classifier (models/perceptual.py)."""

  depths: tuple[int, ...] = (3, 3, 27, 3)
  widths: tuple[int, ...] = (96, 192, 384, 768)
  classes: int = 1000


@dataclasses.dataclass(frozen=True)
class TokenizerDims:
  """The reconstruction model (models/tokenizer.py): vision tower, mlp1, latent head, pixel decoder."""

  vit: vision.VisionDims  # their class chooses the tower
  llm_width: int  # mlp1's output width
  latent_depth: int  # residual blocks of the latent head
  decoder: DcaeDims
  latent_init_std: float = 0.02  # of the latent head's kernels at the start (official)

  @property
  def latent_channels(self) -> int:
    return self.decoder.latent_channels

  def tokens_per_side(self, image_size: int) -> int:
    """Tokens, and so latents, on a side of `image_size` pixels."""
    return image_size // self.vit.pixels_per_token

  def image_tokens(self, size: int | rectangles.Size) -> int:
    """Tokens of an image; `size` is the side of a square or (height, width), in pixels."""
    height, width = rectangles.both_sides(size)
    return self.tokens_per_side(height) * self.tokens_per_side(width)


@dataclasses.dataclass(frozen=True)
class LlmDims:
  """Qwen2.5 (models/qwen2.py); the connector has the same layers."""

  depth: int
  width: int
  heads: int
  kv_heads: int
  mlp: int
  vocab: int  # rows in use; the table itself is padded (`rows`)
  tied: bool = False  # whether the output head is the embedding table
  rope_theta: float = 1e6
  init_std: float = 0.02  # of kernels and embeddings at the start (official)

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def rows(self) -> int:
    """Rows of the embedding table here: `vocab` up to the next multiple of 128."""
    return -(-self.vocab // 128) * 128


@dataclasses.dataclass(frozen=True)
class ConnectorDims:
  """Queries and bidirectional layers between the LLM and the DiT (models/connector.py)."""

  depth: int  # copies of the LLM's last layers
  queries: int


@dataclasses.dataclass(frozen=True)
class DitDims:
  """SANA (models/sana.py, arXiv 2410.10629); patch side 1."""

  depth: int
  heads: int
  head_dim: int
  cross_heads: int
  cross_head_dim: int
  caption_width: int  # of the conditioning states
  channels: int = 32  # of the latents
  mlp_ratio: float = 2.5
  grid: int = 16  # latents per side for which positions are unscaled
  # Sine-cosine positions, with which UniLIP was trained. diffusers before 0.33 adds them, later releases
  # do not, and the file of weights is the same.
  positions: bool = True
  qk_norm: bool = False  # SANA 1.5: RMSNorm over all heads of q and k

  @property
  def width(self) -> int:
    return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class UnilipDims:
  """The complete model (models/unilip.py)."""

  tokenizer: TokenizerDims
  llm: LlmDims
  connector: ConnectorDims
  dit: DitDims
  factor: float  # the DiT sees latents × factor
  few_step: str = ""  # method of tasks/distill.py that made a few-step network of the DiT; "": a flow


@dataclasses.dataclass(frozen=True)
class Preset:
  """Dimensions of all networks of one size: those of UnilipDims and what only training uses."""

  tokenizer: TokenizerDims
  llm: LlmDims
  connector: ConnectorDims
  dit: DitDims
  factor: float
  dcae_encoder: DcaeDims  # gen1's target latents
  discriminator: DiscriminatorDims
  vgg: VggDims
  convnext: ConvNextDims

  @property
  def unilip(self) -> UnilipDims:
    return UnilipDims(self.tokenizer, self.llm, self.connector, self.dit, self.factor)


_INTERNVIT_300M = VitDims(
    depth=24, width=1024, heads=16, mlp=4096, patch=14, image_size=448)


def _dcae(layers, resample, channels, vit_stages: int) -> DcaeDims:
  """Residual blocks in the outer stages, EfficientViT blocks in the `vit_stages` deepest ones."""
  res_stages = len(channels) - vit_stages
  return DcaeDims(
      latent_channels=32,
      channels=channels,
      layers=layers,
      blocks=("ResBlock",) * res_stages + ("EfficientViTBlock",) * vit_stages,
      qkv_multiscales=((),) * res_stages + ((5,),) * vit_stages,
      head_dim=32,
      norms=("rms_norm",) * 6,
      acts=("silu",) * 6,
      resample=resample)


_DCAE_CHANNELS = (128, 256, 512, 512, 1024, 1024)
_DCAE_DECODER = _dcae((3, 3, 3, 3, 3, 3), "interpolate", _DCAE_CHANNELS, 3)
_DCAE_ENCODER = _dcae((2, 2, 2, 3, 3, 3), "Conv", _DCAE_CHANNELS, 3)


_VOCABULARY = 151_677  # InternVL3's 151 674 and the three that UniLIP's training adds
_CAPTION_WIDTH = 2304


def _published(llm: LlmDims, dit: DitDims, factor: float) -> Preset:
  return Preset(
      tokenizer=TokenizerDims(
          vit=_INTERNVIT_300M, llm_width=llm.width, latent_depth=3, decoder=_DCAE_DECODER),
      llm=llm,
      connector=ConnectorDims(depth=6, queries=256),
      dit=dit,
      factor=factor,
      dcae_encoder=_DCAE_ENCODER,
      discriminator=DiscriminatorDims(stem=128, channels=(128, 256, 512)),
      vgg=VggDims(),
      convnext=ConvNextDims())


# 0.02 suits widths near 1000; at 128 attention would start flat and positions without effect.
_TINY_STD = 0.09


def _tiny() -> Preset:
  # Most of the decoder's work is at 4–16 px, where a CPU is fast. All included weights of these sizes
  # (shapes/weights) take less than 25 MB.
  channels = (16, 16, 32, 32, 64, 128)
  return Preset(
      tokenizer=TokenizerDims(
          vit=VitDims(depth=4, width=128, heads=4, mlp=512, patch=14, image_size=112,
                      init_std=_TINY_STD),
          llm_width=128,
          latent_depth=3,
          decoder=_dcae((0, 1, 1, 1, 1, 1), "pixel_shuffle", channels, 2),
          latent_init_std=0.1),
      llm=LlmDims(depth=4, width=128, heads=4, kv_heads=2, mlp=384, vocab=482, tied=True,
                  init_std=_TINY_STD),
      connector=ConnectorDims(depth=2, queries=16),
      dit=DitDims(depth=5, heads=4, head_dim=32, cross_heads=4, cross_head_dim=32,
                  caption_width=128, grid=4),
      factor=2.5,  # of shapes:stage2, whose latents deviate by 0.39 from their channels' means
      dcae_encoder=dataclasses.replace(
          _dcae((0, 1, 1, 1, 1, 1), "pixel_unshuffle", channels, 2),
          scaling_factor=0.538),  # of shapes:dcae, whose latents have a deviation of 1.859
      discriminator=DiscriminatorDims(stem=16, channels=(16, 32, 32), groups=8),
      vgg=VggDims(channels=(8, 16, 16, 32, 32)),
      convnext=ConvNextDims(depths=(1, 1, 2, 1), widths=(16, 32, 48, 64), classes=10))


def _1b() -> Preset:
  return _published(
      LlmDims(depth=24, width=896, heads=14, kv_heads=2, mlp=4864, vocab=_VOCABULARY),
      DitDims(depth=28, heads=36, head_dim=32, cross_heads=16, cross_head_dim=72,
              caption_width=_CAPTION_WIDTH),
      factor=10.6)


def _3b() -> Preset:
  return _published(
      LlmDims(depth=28, width=1536, heads=12, kv_heads=2, mlp=8960, vocab=_VOCABULARY),
      DitDims(depth=20, heads=70, head_dim=32, cross_heads=20, cross_head_dim=112,
              caption_width=_CAPTION_WIDTH),
      factor=9.5)


SIZES = ("tiny", "1b", "3b")
for _size in SIZES:
  registry.register("size", _size, f"{__name__}:_{_size}")


def get(size: str) -> Preset:
  """Returns the dimensions of `size`.

  Args:
    size: one of SIZES, or of a plug-in.

  Raises:
    ValueError: for any other name.
  """
  return registry.find("size", size)()


def to_json(dims: Any) -> Any:
  """Turns a dims dataclass into JSON-ready nested dicts; `kind` names a tower other than InternViT."""
  if not dataclasses.is_dataclass(dims):
    return dims
  named = isinstance(dims, vision.VisionDims) and dims.kind != vision.FIRST_KIND
  fields = {f.name: to_json(getattr(dims, f.name)) for f in dataclasses.fields(dims)}
  return ({"kind": dims.kind} if named else {}) | fields


def from_json(cls: type, values: dict[str, Any]) -> Any:
  """Inverts `to_json`: lists become tuples, nested dicts their dataclass.

  Raises:
    ValueError: for fields that `cls` lacks or needs, by name.
  """
  if cls is vision.VisionDims:
    values = dict(values)
    cls = vision.tower_class(values.pop("kind", vision.FIRST_KIND)).Dims
  fields = {f.name: f for f in dataclasses.fields(cls)}
  unknown = sorted(set(values) - set(fields))
  required = {
      n for n, f in fields.items()
      if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
  missing = sorted(required - set(values))
  if unknown or missing:
    raise ValueError(f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}")

  def freeze(value):
    return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value

  return cls(**{
      name: from_json(fields[name].type, value) if isinstance(value, dict) else freeze(value)
      for name, value in values.items()})
