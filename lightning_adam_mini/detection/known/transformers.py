"""transformers' fused and otherwise special attention. Plain q/k/v projections with declared heads need no entry."""

from lightning_adam_mini.detection.registry import PER_HEAD, STACKED, KnownModule

_FUSED = ("qkv", "qkv_proj", "Wqkv", "query_key_value", "c_attn", "att_proj", "in_proj", "qkv_linear")
_OUT = dict.fromkeys(("c_proj", "proj", "projection", "o_proj", "out_proj", "Wo", "dense", "to_out", "resid_proj"), "attn_out")
_KEY_VALUE = "k:{G}x{D}|v:{G}x{D}"


def _names(*names: str) -> tuple[str, ...]:
    return tuple(f"transformers.models.{name}" for name in names)


def _fused(lines: str, *names: str, when: str | None = None, **symbols: str) -> KnownModule:
    """Classes whose one fused projection, whatever it is called, has these lines."""
    parts = {**dict.fromkeys(_FUSED, lines), "q_bias": "q:{H}x{D}", "v_bias": "v:{H}x{D}", **_OUT}
    return KnownModule(_names(*names), parts, symbols, when)


_GPT2 = ("gpt2.modeling_gpt2.GPT2Attention", "*GPT2Attention", "imagegpt.modeling_imagegpt.ImageGPTAttention")

MODULES = (
    # ---- queries, then keys, then values -------------------------------------------------------------------------------
    KnownModule(_names(*_GPT2), {"c_attn": "k:{H}x{D}|v:{H}x{D}", "q_attn": "q:{H}x{D}", "c_proj": "attn_out"}, when="is_cross_attention"),
    _fused(
        STACKED,
        *_GPT2,
        "*VisionAttention",  # the towers for images of Qwen, GLM, SAM, ...
        "openai.modeling_openai.Attention",
        "bark.modeling_bark.BarkSelf*Attention",
        "mpt.modeling_mpt.MptAttention",
        "timesformer.modeling_timesformer.TimesformerSelfAttention",
        "mgp_str.modeling_mgp_str.MgpstrAttention",
        "vitdet.modeling_vitdet.VitDetAttention",
        "sam2*.Sam2*MultiScaleAttention",
        "hiera.modeling_hiera.HieraMaskUnitAttention",
        "florence2.modeling_florence2.Florence2VisionWindowAttention",
        "layoutlmv2.modeling_layoutlmv2.LayoutLMv2SelfAttention",
        "blip.modeling_blip.BlipAttention",
        "blip_2.modeling_blip_2.Blip2Attention",
        "instructblip*Attention",
        "pp_ocrv*Attention",
        "seggpt.modeling_seggpt.SegGptAttention",
        "modernbert*Attention",
        # Grouped queries.
        "dbrx.modeling_dbrx.DbrxAttention",
        "phi3.modeling_phi3.Phi3Attention",
        "phi4_multimodal.modeling_phi4_multimodal.Phi4MultimodalAttention",
    ),
    _fused(STACKED, "florence2.modeling_florence2.Florence2VisionChannelAttention", H="groups", G="groups"),
    KnownModule(
        _names("evolla*SequenceCompressorAttention", "granite_speech*ConformerAttention", "jetmoe.modeling_jetmoe.JetMoeAttention"),
        {"to_q": "q:{H}x{D}", "to_kv": "k:{H}x{D}|v:{H}x{D}", "kv_proj": _KEY_VALUE, "to_out": "attn_out"},
    ),
    # ---- head by head ----------------------------------------------------------------------------------------------------
    _fused(
        PER_HEAD,
        "gpt_neox.modeling_gpt_neox.GPTNeoXAttention",
        "gpt_neox_japanese.modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention",
        "bloom.modeling_bloom.BloomAttention",
        "persimmon.modeling_persimmon.PersimmonAttention",
        "minimax.modeling_minimax.MiniMaxLightningAttention",
    ),
    KnownModule(
        _names("deberta.modeling_deberta.DisentangledSelfAttention"),
        {"in_proj": PER_HEAD, "pos_proj": "k:{H}x{D}", "pos_q_proj": "q:{H}x{D}", "q_bias": "q:{H}x{D}", "v_bias": "v:{H}x{D}"},
    ),
    _fused(
        "{G}*(q:{H // G}x{D}|k:1x{D}|v:1x{D})",
        "falcon.modeling_falcon.FalconAttention",
        when="new_decoder_architecture",
        G="num_kv_heads",
    ),
    _fused("q:{H}x{D}|k:1x{D}|v:1x{D}", "falcon.modeling_falcon.FalconAttention", when="multi_query"),
    _fused(PER_HEAD, "falcon.modeling_falcon.FalconAttention"),
    _fused("q:{H}x{D}|k:1x{D}|v:1x{D}", "gpt_bigcode.modeling_gpt_bigcode.GPTBigCodeAttention", when="multi_query"),
    _fused(PER_HEAD, "gpt_bigcode.modeling_gpt_bigcode.GPTBigCodeAttention"),
    # CodeGen was trained on four machines, and its rows are still in their order.
    _fused("4*(q:{H // 4}x{D}|v:{H // 4}x{D}|k:{H // 4}x{D})", "codegen.modeling_codegen.CodeGenAttention"),
    KnownModule(
        _names("levit.modeling_levit.LevitAttention"),
        {"queries_keys_values": "{H}*(q:1x{key_dim}|k:1x{key_dim}|v:1x{D})", "projection": "attn_out"},
    ),
    KnownModule(
        _names("levit.modeling_levit.LevitAttentionSubsample"),
        {"keys_values": "{H}*(k:1x{key_dim}|v:1x{D})", "queries": "q:{H}x{key_dim}", "projection": "attn_out"},
    ),
    KnownModule(
        _names("mobilevitv2.modeling_mobilevitv2.MobileViTV2LinearSelfAttention"),
        {"qkv_proj": "q:1x1|k:1x{D}|v:1x{D}", "out_proj": "attn_out"},
    ),
    # ---- gates beside queries, and linear attention ----------------------------------------------------------------------
    KnownModule(
        _names("qwen3_next*Attention", "qwen3_5*Attention", "qwen4_exp*Attention"),
        {"q_proj": "{H}*(q:1x{head_dim}|g:1x{head_dim})", "k_proj": "k:{G}x{head_dim}", "v_proj": "v:{G}x{head_dim}"}
        | {"o_proj": "attn_out", "qkv": STACKED, "proj": "attn_out"},
    ),
    KnownModule(
        _names("*GatedDeltaNet"),
        {
            "in_proj_qkvz": "{num_k_heads}*(q:1x{head_k_dim}|k:1x{head_k_dim}|v:{R}x{head_v_dim}|z:{R}x{head_v_dim})",
            "in_proj_ba": "attn_other={num_k_heads}*(b:{R}|a:{R})",
            "in_proj_qkv": "q:{num_k_heads}x{head_k_dim}|k:{num_k_heads}x{head_k_dim}|v:{num_v_heads}x{head_v_dim}",
            "q_proj": "q:{num_k_heads}x{head_k_dim}",
            "k_proj": "k:{num_k_heads}x{head_k_dim}",
            "v_proj": "v:{num_v_heads}x{head_v_dim}",
            "in_proj_z": "attn_other",
            "in_proj_a": "attn_other",
            "in_proj_b": "attn_other",
            "out_proj": "attn_out",
            "o_proj": "attn_out",
        },
        {"R": "num_v_heads // num_k_heads"},
    ),
    KnownModule(
        _names("xlstm.modeling_xlstm.xLSTMLayer"),
        {
            "qkv_opreact": "q:{H}x{qk_dim // H}|k:{H}x{qk_dim // H}|v:{H}x{v_dim // H}|gate:{v_dim}",
            "q": "q:{H}x{D}",
            "k": "k:{H}x{D}",
            "v": "v:{H}x{D}",
        },
        {"H": "config.num_heads"},
    ),
    # ---- latent attention ------------------------------------------------------------------------------------------------
    KnownModule(
        ("*",),
        {
            "q_a_proj": "attn_other",
            "q_b_proj": "q:{H}x{qk_nope_head_dim + qk_rope_head_dim}",
            "q_proj": "q:{H}x{qk_nope_head_dim + qk_rope_head_dim}",
            "kv_a_proj_with_mqa": "n:{kv_lora_rank}|k:1x{qk_rope_head_dim}",
            "kv_b_proj": "{H}*(k:1x{qk_nope_head_dim}|v:1x{v_head_dim})",
            "o_proj": "attn_out",
        },
        when="qk_nope_head_dim and kv_lora_rank and qk_rope_head_dim and kv_b_proj",
    ),
    KnownModule(
        ("*",),
        {"q_a_proj": "attn_other", "q_b_proj": "q:{H}x{D}", "q_proj": "q:{H}x{D}", "kv_a_proj_with_mqa": "attn_other"}
        | {"kv_b_proj": "{H}*(k:1x{qk_nope_head_dim}|v:1x{v_head_dim})", "o_proj": "attn_out"},
        when="qk_nope_head_dim and kv_lora_rank and kv_b_proj",
    ),
    KnownModule(
        _names("deepseek_v4.modeling_deepseek_v4.DeepseekV4Attention"),
        {
            "q_a_proj": "attn_other",
            "q_b_proj": "q:{H}x{head_dim}",
            "kv_proj": "k:1x{head_dim}",  # one key for all heads, which is the value too
            "o_a_proj": "attn_out",
            "o_b_proj": "attn_out",
        },
    ),
    KnownModule(
        _names("deepseek_v4.modeling_deepseek_v4.DeepseekV4Indexer"),
        {"q_b_proj": "q:{H}x{head_dim}", "kv_proj": "k:2x{head_dim}", "gate_proj": "attn_other", "weights_proj": "attn_other"},
    ),
    KnownModule(_names("deepseek_v4*Compressor"), {"kv_proj": "k:{rows // head_dim}x{head_dim}", "gate_proj": "attn_other"}),
    KnownModule(
        _names("*Indexer"),
        {"wq_b": "q:{H}x{head_dim}", "wk": "k:1x{head_dim}", "weights_proj": "attn_other"},
    ),
    # ---- others ------------------------------------------------------------------------------------------------------------
    # Weights of (width, heads, head size).
    KnownModule(
        _names("xlnet.modeling_xlnet.XLNetRelativeAttention"),
        {"q": "q:{n_head}x1@1", "k": "k:{n_head}x1@1", "v": "v:{n_head}x1@1", "r": "k:{n_head}x1@1", "o": "attn_out@0"}
        | {"r_r_bias": "bias", "r_s_bias": "bias", "r_w_bias": "bias", "seg_embed": "type_embedding"},
    ),
    KnownModule(
        _names("funnel.modeling_funnel.FunnelRelMultiheadAttention"),
        {
            "q_head": "q:{config.n_head}x{config.d_head}",
            "k_head": "k:{config.n_head}x{config.d_head}",
            "v_head": "v:{config.n_head}x{config.d_head}",
            "r_kernel": "k:{config.n_head}x1@1",
        }
        | {"post_proj": "attn_out", "seg_embed": "type_embedding"},
    ),
    KnownModule(_names("gemma3n*RelativePositionEmbedding"), {"pos_proj": "k:{H}x{D}"}),
    KnownModule(
        _names("*GroundingDinoBiMultiHeadAttention"),
        {"vision_proj": "q:{H}x{D}", "text_proj": "k:{H}x{D}", "values_vision_proj": "v:{H}x{D}", "values_text_proj": "v:{H}x{D}"}
        | {"out_vision_proj": "attn_out", "out_text_proj": "attn_out"},
    ),
    # Deformable attention has no keys: where to look and how much to take are linear in the query.
    KnownModule(
        _names("*DeformableAttention"),
        {"sampling_offsets": "attn_other", "attention_weights": "attn_other", "value_proj": "v:{H}x{D}", "output_proj": "attn_out"},
    ),
    KnownModule(
        _names("dab_detr.modeling_dab_detr.DabDetrDecoderLayerSelfAttention"),
        {"self_attn_query_*": "q:{H}x{D}", "self_attn_key_*": "k:{H}x{D}", "self_attn_value_*": "v:{H}x{D}"},
        {"H": "self_attn.attention_heads"},
    ),
    KnownModule(
        _names("dab_detr.modeling_dab_detr.DabDetrDecoderLayerCrossAttention"),
        {"cross_attn_query_*": "q:{H}x{D}", "cross_attn_key_*": "k:{H}x{D}", "cross_attn_value_*": "v:{H}x{D}"},
        {"H": "cross_attn.attention_heads"},
    ),
    KnownModule(_names("dab_detr.modeling_dab_detr.DabDetrAttention"), {"output_proj": "attn_out"}),
    KnownModule(
        _names("lilt.modeling_lilt.LiltSelfAttention"),
        {"layout_query": "q:{H}x{D}", "layout_key": "k:{H}x{D}", "layout_value": "v:{H}x{D}"},
        {"D": "attention_head_size // channel_shrink_ratio"},
    ),
    KnownModule(_names("lilt.modeling_lilt.LiltAttention"), {"layout_output.dense": "attn_out"}),
    KnownModule(_names("convbert.modeling_convbert.ConvBertAttention"), {"output.dense": "attn_out"}),
    KnownModule(
        _names("convbert.modeling_convbert.ConvBertSelfAttention"),
        {"key_conv_attn_layer.pointwise": "conv", "conv_kernel_layer": "attn_other", "conv_out_layer": "attn_other"},
    ),
    # One head.
    KnownModule(
        _names("*VQVAE*AttnBlock", "*VQVAE*AttentionBlock", "groupvit*AssignAttention"),
        {name: f"{name[0]}:1x{{D}}" for name in ("q", "k", "v", "q_proj", "k_proj", "v_proj")}
        | {"proj_out": "attn_out", "out_proj": "attn_out"},
    ),
    KnownModule(
        _names("swiftformer*EfficientAdditiveAttention"),
        {"to_query": "q:1x{D}", "to_key": "k:1x{D}", "w_g": "attn_other", "proj": "attn_out", "final": "attn_out"},
    ),
    # One projection for queries and keys, as locality-sensitive hashing asks.
    KnownModule(
        _names("reformer.modeling_reformer.LSHSelfAttention"),
        {"query_key": "q:{H}x{D}", "value": "v:{H}x{D}"},
    ),
    KnownModule(
        _names("esm.modeling_esmfold.EsmFoldInvariantPointAttention"),
        {"linear_q": "q:{H}x{D}", "linear_kv": "{H}*(k:1x{D}|v:1x{D})", "linear_b": "attn_other", "linear_out": "attn_out"}
        | {"linear_q_points": "attn_other", "linear_kv_points": "attn_other"},
    ),
    KnownModule(_names("mobilebert.modeling_mobilebert.MobileBertLMPredictionHead"), {"dense": "lm_head@1"}),
    KnownModule(
        _names("rwkv.modeling_rwkv.RwkvSelfAttention"),
        {"key": "attn_other", "value": "attn_other", "receptance": "attn_other", "output": "attn_out"},
    ),
    KnownModule(
        _names("rwkv.modeling_rwkv.RwkvFeedForward"),
        {"key": "mlp_up", "value": "mlp_down", "receptance": "mlp_gate"},
    ),
)
