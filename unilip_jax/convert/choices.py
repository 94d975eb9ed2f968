"""What a user can choose in a conversion; the command line lists it without importing JAX."""

IMPORT_DTYPES = ("source", "float32", "bfloat16")
EXPORT_DTYPES = ("float32", "bfloat16", "source")
FORMATS = ("unilip", "pth", "components", "diffusers")
ROLES = ("mllm", "dit", "vae", "unilip")  # of a source in an import; later ones win (importer.ROLES)
