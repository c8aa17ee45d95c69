"""transformers' fused and otherwise special attention. Plain q/k/v projections need no entry."""

from lightning_adam_mini.detection.registry import STACKED, KnownModule

MODULES = (
    KnownModule(
        ("transformers.models.gpt2.modeling_gpt2.GPT2Attention",),
        {"c_attn": STACKED, "c_proj": "attn_out"},
        when="not is_cross_attention",
    ),
    KnownModule(
        ("transformers.models.gpt2.modeling_gpt2.GPT2Attention",),
        {"c_attn": "k:{H}x{D}|v:{H}x{D}", "q_attn": "q:{H}x{D}", "c_proj": "attn_out"},
        when="is_cross_attention",
    ),
)
