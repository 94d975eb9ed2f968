"""The Inception-v3 of the Fréchet inception distance: one flat file for pytorch-fid and torch-fidelity."""

from unilip_jax.convert import engine, io, reading
from unilip_jax.models import inception, presets

Rule = engine.Rule


def rules() -> list[Rule]:
  """Returns the rules of all tensors."""
  table = []
  for path in inception.unit_names():
    torch = path.replace("/", ".")
    table.append(Rule(f"{torch}.conv.weight", f"inception/{path}/kernel", "conv"))
    table += [Rule(f"{torch}.bn.{name}", f"inception/{path}/{ours}") for name, ours in (
        ("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))]
  return [*table, Rule("fc.weight", "inception/fc_kernel", "linear"),
          Rule("fc.bias", "inception/fc_bias")]


def read(source: io.Source, options: reading.Options) -> reading.Reading:
  """Reads pt_inception-2015-12-05 (pytorch-fid) or weights-inception-2015-12-05 (torch-fidelity).

  Raises:
    DimsError: for torchvision's ImageNet weights, which have the same names.
  """
  shapes = source.tensors.shapes
  classes = shapes["fc.weight"][0]
  if classes == 1000 or any(name.startswith("AuxLogits.") for name in shapes):
    raise reading.DimsError(
        "these are torchvision's ImageNet weights. The Fréchet inception distance and the inception score "
        "are defined on TensorFlow's network of 2015-12-05 (1008 classes, other poolings), and other "
        "weights give other numbers; download pt_inception-2015-12-05-6726825d.pth of pytorch-fid")
  dims = inception.dims_of_width(shapes["Conv2d_1a_3x3.conv.weight"][0], classes)
  return reading.Reading(
      [reading.Part("inception", presets.to_json(dims), rules())], [reading.COUNTER])
