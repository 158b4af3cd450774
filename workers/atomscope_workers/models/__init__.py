"""Loading base models and adapters safely: safetensors only, no remote code, matched by name."""
