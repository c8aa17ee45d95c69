"""The package's own entries for modules of torch, timm, transformers, diffusers, torch-geometric and others."""

from lightning_adam_mini.detection.known.apply import claim_known as claim_known
