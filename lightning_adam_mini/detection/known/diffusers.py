"""diffusers' fused and otherwise special attention. ``to_q``, ``to_k``, ``to_v`` with declared heads need no entry."""

from lightning_adam_mini.detection.registry import STACKED, KnownModule

_M = "diffusers.models"
_KEY_VALUE = "k:{H}x{D}|v:{H}x{D}"
_ONE_HEAD = "q:1x{D}|k:1x{D}|v:1x{D}"
# Differential attention: two query and two key heads for each value head, or one where it is turned off.
_DIFFERENTIAL = "q:{(rows // dim_heads - H) // 2}x{dim_heads}|k:{(rows // dim_heads - H) // 2}x{dim_heads}|v:{H}x{dim_heads}"

# Sana's multi-scale attention concatenates q, k and v, and then cuts that into heads of q, k and v each, so that what is called to_q holds
# queries, keys and values in turn, and to_k and to_v go on where it ended.
_SANA = f"{_M}.attention_processor.SanaMultiscaleLinearAttention"
_IN_TURN = ("q:1x{D}", "k:1x{D}", "v:1x{D}")


def _in_turn(first: int, over: int) -> str:
    """Template for ``H`` heads that are q, k, v in turn, from the ``first`` on, where H leaves ``over`` if divided by 3."""
    lead = [_IN_TURN[i % 3] for i in range(first, 3)] if first else []
    tail = [_IN_TURN[i] for i in range((first + over) % 3)]
    triples = f"{{(H - {len(lead) + len(tail)}) // 3}}*({'|'.join(_IN_TURN)})"
    return "|".join([*lead, triples, *tail])


MODULES = (
    *(
        KnownModule(
            (_SANA,),
            {
                "to_q": _in_turn(0, over),
                "to_k": _in_turn(over, over),
                "to_v": _in_turn(2 * over % 3, over),
                "to_qkv_multiscale.*.proj_out": f"{{H}}*({'|'.join(_IN_TURN)})",
                "to_out": "attn_out",
            },
            {"H": "to_q.out_features // attention_head_dim", "D": "attention_head_dim"},
            when=f"to_q.out_features // attention_head_dim % 3 == {over}",
        )
        for over in range(3)
    ),
    KnownModule(
        (f"{_M}.transformers.transformer_flux2.Flux2ParallelSelfAttention",),
        {
            "to_qkv_mlp_proj": "q:{H}x{head_dim}|k:{H}x{head_dim}|v:{H}x{head_dim}|mlp_gate_up:{rows - 3 * H * head_dim}",
            "to_out": "attn_out",
        },
    ),
    # The attention block of image autoencoders has one head.
    KnownModule(
        (f"{_M}.autoencoders.*AttnBlock*",),
        {name: f"{name[-1]}:1x{{D}}" for name in ("q", "k", "v", "to_q", "to_k", "to_v")} | {"proj_out": "attn_out", "to_out": "attn_out"},
    ),
    KnownModule((f"{_M}.autoencoders.*AttentionBlock",), {"to_qkv": _ONE_HEAD, "proj": "attn_out"}),
    KnownModule(
        (f"{_M}.autoencoders.autoencoder_mmaudio.MMAudioAttnBlock1D",),
        {"qkv": "{H}*[q,k,v]x{rows // (3 * H)}", "proj_out": "attn_out"},
    ),
    KnownModule((f"{_M}.autoencoders.autoencoder_same.SAMEAttention",), {"to_qkv": _DIFFERENTIAL, "to_out": "attn_out"}),
    KnownModule(
        (f"{_M}.transformers.transformer_stable_audio3.StableAudio3SelfAttention",), {"to_qkv": _DIFFERENTIAL, "to_out": "attn_out"}
    ),
    KnownModule(
        (f"{_M}.transformers.transformer_stable_audio3.StableAudio3CrossAttention",),
        {
            "to_q": "q:{rows // dim_heads}x{dim_heads}",
            "to_kv": "k:{rows // dim_heads - H}x{dim_heads}|v:{H}x{dim_heads}",
            "to_out": "attn_out",
        },
    ),
    KnownModule(
        (f"{_M}.transformers.transformer_sana_wm.*",),
        {"qkv": STACKED, "q_linear": "q:{H}x{D}", "kv_linear": _KEY_VALUE, "proj": "attn_out"},
        {"G": "H"},
        when="heads",
    ),
    KnownModule((f"{_M}.embeddings.MochiAttentionPool",), {"to_q": "q:{H}x{D}", "to_kv": _KEY_VALUE, "to_out": "attn_out"}),
    KnownModule((f"{_M}.transformers.*SingleTransformerBlock",), {"proj_mlp": "mlp_up", "proj_out": "attn_out"}),
    KnownModule((f"{_M}.transformers.*Model",), {"x_embedder": "patch_embedding", "img_in": "patch_embedding"}),
    # fuse_projections() stacks what was apart.
    KnownModule(
        (f"{_M}.attention.AttentionModuleMixin", f"{_M}.attention_processor.Attention", f"{_M}.*Attention"),
        {
            **dict.fromkeys(("qkv", "to_qkv", "to_added_qkv", "img_attn_qkv", "txt_attn_qkv", "img_qkv_proj"), STACKED),
            **dict.fromkeys(("to_kv", "to_added_kv", "txt_kv_proj"), _KEY_VALUE),
        },
    ),
)
