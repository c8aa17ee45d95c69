"""LightningCLI programs that train real models with AdamW or, by one callback in their YAML, with Adam-mini."""
