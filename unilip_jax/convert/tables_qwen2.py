"""Names of Qwen2 in transformers: the LLM, and the connector made of its layers."""

from unilip_jax.convert import rules as engine
from unilip_jax.convert import tables_internvit as names
from unilip_jax.convert import transforms
from unilip_jax.models import presets

Rule = engine.Rule


def rules(dims: presets.LlmDims, torch: str, path: str, *, head: str) -> list[Rule]:
  """The LLM.

  Args:
    dims: its sizes.
    torch: prefix of the body, e.g. "model.language_model.".
    path: prefix of ours, e.g. "llm/".
    head: name of the output head's weight, e.g. "lm_head.weight"; not read where it is tied.
  """
  table = [Rule(f"{torch}embed_tokens.weight", f"{path}embedding",
                transforms.padded_vocabulary(dims.vocab, dims.rows))]
  if not dims.tied:
    table.append(Rule(head, f"{path}head",
                      transforms.padded_vocabulary(dims.vocab, dims.rows, head=True)))
  return table + stack(dims, dims.depth, torch, f"{path}stack/")


def stack(dims: presets.LlmDims, depth: int, torch: str, path: str) -> list[Rule]:
  """`depth` layers and the norm behind them.

  Args:
    dims: sizes of a layer.
    depth: number of layers.
    torch: prefix, e.g. "model.llm_connector.".
    path: prefix of ours, e.g. "connector/".
  """
  layer, ours = f"{torch}layers.{{i}}.", f"{path}layers/"
  attention = [f"{layer}self_attn.{x}_proj" for x in "qkv"]
  sizes = tuple(n * dims.head_dim for n in (dims.heads, dims.kv_heads, dims.kv_heads))
  return [
      Rule(f"{layer}input_layernorm.weight", f"{ours}norm1/scale", count=depth),
      Rule(f"{layer}post_attention_layernorm.weight", f"{ours}norm2/scale", count=depth),
      Rule(tuple(f"{x}.weight" for x in attention), f"{ours}attn/qkv/kernel", "linear", depth,
           sizes=sizes),
      Rule(tuple(f"{x}.bias" for x in attention), f"{ours}attn/qkv/bias", "copy", depth,
           sizes=sizes),
      Rule(f"{layer}self_attn.o_proj.weight", f"{ours}attn/out/kernel", "linear", depth),
      Rule((f"{layer}mlp.gate_proj.weight", f"{layer}mlp.up_proj.weight"),
           f"{ours}mlp/gate_up/kernel", "linear", depth),
      Rule(f"{layer}mlp.down_proj.weight", f"{ours}mlp/down/kernel", "linear", depth),
      Rule(f"{torch}norm.weight", f"{path}norm/scale")]


def connector_rules(llm: presets.LlmDims, dims: presets.ConnectorDims) -> list[Rule]:
  """Queries, connector and projector in a UniLIP folder."""
  return [
      Rule("model.latent_queries", "queries/queries", "unbatched"),
      *stack(llm, dims.depth, "model.llm_connector.", "connector/"),
      *names.linear("model.projector", "projector")]
