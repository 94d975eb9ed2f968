"""Networks as Flax Linen modules: they hold parameters; everything else is a function.

Legend of dimensions, used in docstrings, comments and einsums:

  B batch        L tokens       S keys            Q queries
  N heads        K kv heads     G heads per kv    H head dim
  D width        F mlp width    V vocabulary      T image tiles
  h w c          latent grid and channels         R pixels per side

Layouts: images are NHWC, sequences [B, L, D]. Parameters are float32; `dtype` is the compute dtype;
norms, softmax and linear attention compute in float32. A stack of equal layers is one scanned module; its
parameters are under the key `layers`, with the layer as the leading axis.
"""
