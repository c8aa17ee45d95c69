"""timm's attention."""

from lightning_adam_mini.detection.registry import STACKED, KnownModule

MODULES = (KnownModule(("timm.layers.attention.Attention", "timm.layers.attention.AttentionRope"), {"qkv": STACKED, "proj": "attn_out"}),)
