"""Attention of litgpt, x-transformers, vit-pytorch, open_clip and other small libraries, and PEFT's adapters."""

from lightning_adam_mini.detection.registry import STACKED, KnownModule

_KEY_VALUE = "k:{H}x{D}|v:{H}x{D}"

MODULES = (
    KnownModule(
        ("peft.tuners.lora.layer.LoraLayer", "peft.tuners.tuners_utils.BaseTunerLayer"),
        {"lora_A.*": "lora_a", "lora_B.*": "lora_b", "lora_embedding_A.*": "lora_a", "lora_embedding_B.*": "lora_b"},
    ),
    KnownModule(
        ("litgpt.model.CausalSelfAttention",),
        {"qkv": "q:{H}x{D}|k:{G}x{D}|v:{G}x{D}", "attn": "q:{H}x{D}|k:{G}x{D}|v:{G}x{D}", "proj": "attn_out"},
        {"H": "config.n_head", "G": "config.n_query_groups", "D": "config.head_size"},
    ),
    KnownModule(
        ("litgpt.model.MultiheadLatentAttention",),
        {
            "q_a_proj": "attn_other",
            "q_b_proj": "q:{H}x{config.qk_head_dim}",
            "q_proj": "q:{H}x{config.qk_head_dim}",
            "kv_a_proj_with_mqa": "n:{config.kv_lora_rank}|k:1x{config.qk_rope_head_dim}",
            "kv_b_proj": "{config.n_query_groups}*(k:1x{config.qk_nope_head_dim}|v:1x{config.v_head_dim})",
            "proj": "attn_out",
        },
        {"H": "config.n_head"},
    ),
    KnownModule(
        ("open_clip.transformer.Attention",),
        {"in_proj_weight": STACKED, "in_proj_bias": STACKED, "out_proj": "attn_out"},
        {"G": "H"},
    ),
    KnownModule(
        ("segmentation_models_pytorch.encoders.mix_transformer.Attention",), {"kv": _KEY_VALUE, "q": "q:{H}x{D}", "proj": "attn_out"}
    ),
    # lucidrains' convention: chunk(3), and then '(h d)'.
    KnownModule(
        ("vit_pytorch.*", "denoising_diffusion_pytorch.*"),
        {"to_qkv": STACKED, "to_kv": _KEY_VALUE, "to_q": "q:{H}x{D}", "to_out": "attn_out"},
        {"H": "heads", "G": "heads"},
        when="heads == heads",
    ),
)
