"""UniLIP in JAX: one CLIP tokenizer that understands, reconstructs, generates and edits images."""
