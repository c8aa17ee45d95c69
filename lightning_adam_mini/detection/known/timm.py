"""timm's and torchvision's attention and token mixing."""

from lightning_adam_mini.detection.registry import PER_HEAD, STACKED, KnownModule

_M = "timm.models"
_L = "timm.layers"
_KEY_VALUE = "k:{H}x{D}|v:{H}x{D}"
# LeViT and its kin: keys are smaller than values.
_UNEQUAL = "{H}*(q:1x{key_dim}|k:1x{key_dim}|v:1x{val_dim})"

MODULES = (
    KnownModule(
        (
            f"{_L}.attention.Attention",
            f"{_L}.attention.AttentionRope",
            f"{_L}.attention_pool2d.AttentionPool2d",
            f"{_L}.attention_pool2d.RotAttentionPool2d",
            f"{_M}.beit.Attention",
            f"{_M}.coat.FactorAttnConvRelPosEnc",
            f"{_M}.convit.MHSA",
            f"{_M}.davit.WindowAttention",
            f"{_M}.edgenext.CrossCovarianceAttn",
            f"{_M}.eva.EvaAttention",
            f"{_M}.fastvit.Attention",
            f"{_M}.hiera.MaskUnitAttention",
            f"{_M}.hieradet_sam2.MultiScaleAttention",
            f"{_M}.metaformer.Attention",
            f"{_M}.mvitv2.MultiScaleAttention",
            f"{_M}.mvitv2.MultiScaleAttentionPoolFirst",
            f"{_M}.nest.Attention",
            f"{_M}.swin_transformer.WindowAttention",
            f"{_M}.swin_transformer_v2.WindowAttention",
            f"{_M}.swin_transformer_v2_cr.WindowMultiHeadAttention",
            f"{_M}.twins.LocallyGroupedAttn",
            f"{_M}.visformer.Attention",
            f"{_M}.vision_transformer_relpos.RelPosAttention",
            f"{_M}.vision_transformer_sam.Attention",
            f"{_M}.volo.Attention",
            f"{_M}.xcit.XCA",
            "torchvision.models.swin_transformer.ShiftedWindowAttention",
            "torchvision.models.video.mvit.MultiscaleAttention",
        ),
        {"qkv": STACKED, "q_bias": "q:{H}x{D}", "v_bias": "v:{H}x{D}", "proj": "attn_out", "project": "attn_out", "gate": "attn_other"},
        {"G": "H"},
    ),
    KnownModule((f"{_M}.davit.ChannelAttentionV2",), {"qkv": STACKED, "proj": "attn_out"}, {"H": "groups", "G": "groups"}),
    # Here softmax(kᵀv) is applied to q: the tensor called k asks, v answers and q is what is mixed.
    KnownModule((f"{_M}.davit.ChannelAttention",), {"qkv": "v:{H}x{D}|q:{H}x{D}|k:{H}x{D}", "proj": "attn_out"}),
    KnownModule(
        (f"{_M}.cait.TalkingHeadAttn",),
        {"qkv": STACKED, "proj": "attn_out", "proj_l": "attn_other", "proj_w": "attn_other"},
    ),
    KnownModule((f"{_M}.convit.GPSA",), {"qk": "q:{H}x{D}|k:{H}x{D}", "v": "v:{H}x{D}", "proj": "attn_out", "pos_proj": "attn_other"}),
    KnownModule((f"{_M}.tnt.Attention",), {"qk": "q:{H}x{D}|k:{H}x{D}", "v": "v:{H}x{D}", "proj": "attn_out"}),
    KnownModule(
        (
            f"{_L}.attention_pool.AttentionPoolLatent",
            f"{_M}.pvt_v2.Attention",
            f"{_M}.twins.GlobalSubSampleAttn",
            f"{_M}.volo.ClassAttention",
        ),
        {"q": "q:{H}x{D}", "kv": _KEY_VALUE, "proj": "attn_out"},
    ),
    KnownModule((f"{_M}.gcvit.WindowAttentionGlobal",), {"qkv": _KEY_VALUE, "proj": "attn_out"}, when="use_global"),
    KnownModule((f"{_M}.gcvit.WindowAttentionGlobal",), {"qkv": STACKED, "proj": "attn_out"}),
    KnownModule((f"{_M}.volo.OutlookAttention",), {"v": "v:{H}x{D}", "attn": "attn_other", "proj": "attn_out"}),
    KnownModule((f"{_M}.crossvit.CrossAttention",), {"wq": "q:{H}x{D}", "wk": "k:{H}x{D}", "wv": "v:{H}x{D}", "proj": "attn_out"}),
    KnownModule(
        (f"{_M}.maxxvit.Attention2d", f"{_M}.maxxvit.AttentionCl", f"{_L}.attention2d.Attention2d"),
        {"qkv": PER_HEAD, "proj": "attn_out"},
        when="head_first",
    ),
    KnownModule(
        (f"{_M}.maxxvit.Attention2d", f"{_M}.maxxvit.AttentionCl", f"{_L}.attention2d.Attention2d"),
        {"qkv": STACKED, "proj": "attn_out"},
    ),
    KnownModule(
        ("torchvision.models.maxvit.RelativePositionalMultiHeadAttention",),
        {"to_qkv": STACKED, "merge": "attn_out"},
    ),
    KnownModule(
        (f"{_M}.efficientformer.Attention", f"{_M}.levit.Attention", f"{_M}.tiny_vit.Attention"),
        {"qkv": _UNEQUAL, "proj": "attn_out"},
    ),
    KnownModule(
        (f"{_M}.levit.AttentionDownsample",),
        {"kv": "{H}*(k:1x{key_dim}|v:1x{val_dim})", "q": "q:{H}x{key_dim}", "proj": "attn_out"},
    ),
    KnownModule(
        (f"{_M}.efficientformer_v2.Attention2d", f"{_M}.efficientformer_v2.Attention2dDownsample"),
        {
            "q": "q:{H}x{key_dim}",
            "k": "k:{H}x{key_dim}",
            "v": "v:{H}x{D}",
            "proj": "attn_out",
            "talking_head1": "attn_other",
            "talking_head2": "attn_other",
        },
    ),
    # One module per head.
    KnownModule(
        (f"{_M}.efficientvit_msra.CascadedGroupAttention",),
        {"qkvs.*": "q:1x{key_dim}|k:1x{key_dim}|v:1x{val_dim}", "proj": "attn_out"},
    ),
    # The grouped convolutions of `aggreg` make further heads out of those of `qkv`.
    KnownModule(
        (f"{_M}.efficientvit_mit.LiteMLA",), {"qkv": PER_HEAD, "aggreg.*.1": PER_HEAD, "proj": "attn_out"}, {"H": "rows // (3 * dim)"}
    ),
    KnownModule((f"{_M}.shvit.SHSA",), {"qkv": "q:1x{qk_dim}|k:1x{qk_dim}|v:1x{pdim}", "proj": "attn_out"}),
    KnownModule((f"{_M}.iformer.SHMA",), {"q": "q:1x{D}", "k": "k:1x{D}", "v_gate": "v:1x{D}|gate:{D}", "proj": "attn_out"}),
    KnownModule(
        (f"{_M}.swiftformer.EfficientAdditiveAttention",),
        {"to_query": "q:1x{D}", "to_key": "k:1x{D}", "w_g": "attn_other", "proj": "attn_out", "final": "attn_out"},
    ),
    KnownModule((f"{_M}.mobilevit.LinearSelfAttention",), {"qkv_proj": "q:1x1|k:1x{D}|v:1x{D}", "out_proj": "attn_out"}),
    KnownModule((f"{_M}.csatv2.SpatialTransformerBlock",), {"qkv": "q:1x1|k:1x1|v:1x1"}),
    KnownModule(
        (f"{_L}.bottleneck_attn.BottleneckAttn",),
        {"qkv": "q:{H}x{dim_head_qk}|k:{H}x{dim_head_qk}|v:{H}x{dim_head_v}"},
    ),
    KnownModule(
        (f"{_L}.halo_attn.HaloAttn",),
        {"q": "q:{H}x{dim_head_qk}", "kv": "{H}*(k:1x{dim_head_qk}|v:1x{dim_head_v})"},
    ),
    KnownModule((f"{_L}.lambda_layer.LambdaLayer",), {"qkv": "q:{H}x{dim_qk}|k:1x{dim_qk}|v:1x{dim_v}"}),
    # Two softmax maps a head are subtracted: twice as many query and key heads as value heads.
    KnownModule(
        (f"{_L}.diff_attention.DiffAttention",),
        {"qkv": "q:{2 * H}x{head_dim}|k:{2 * H}x{head_dim}|v:{H}x{2 * head_dim}", "proj": "attn_out"},
    ),
    KnownModule(
        (f"{_M}.vision_transformer.DiffParallelScalingBlock",),
        {
            "in_proj": "mlp_up:{rows - 6 * H * head_dim}|q:{2 * H}x{head_dim}|k:{2 * H}x{head_dim}|v:{H}x{2 * head_dim}",
            "out_proj": "attn_out",
        },
    ),
    KnownModule(
        (f"{_M}.vision_transformer.ParallelScalingBlock",),
        {
            "in_proj": "mlp_up:{rows - 3 * H * head_dim}|q:{H}x{head_dim}|k:{H}x{head_dim}|v:{H}x{head_dim}",
            "out_proj": "attn_out",
            "attn_out_proj": "attn_out",
            "mlp_out_proj": "mlp_down",
        },
    ),
    # One key and one value for all heads.
    KnownModule(
        (f"{_L}.attention2d.MultiQueryAttention2d",),
        {"query": "q:{H}x{key_dim}", "key": "k:1x{key_dim}", "value": "v:1x{value_dim}", "output": "attn_out"},
    ),
    KnownModule(
        (f"{_L}.attention2d.MultiQueryAttentionV2",),
        {"query_proj": "q:{H}x1", "key_proj": "k:1x{key_dim}@1", "value_proj": "v:1x{value_dim}@1", "out_proj": "attn_out"},
    ),
    KnownModule((f"{_M}.mlp_mixer.MixerBlock",), {"mlp_tokens": "token_mix"}),
    KnownModule((f"{_M}.mlp_mixer.ResBlock",), {"linear_tokens": "token_mix"}),
    KnownModule((f"{_M}.mlp_mixer.SpatialGatingUnit", f"{_L}.mlp.GatedMlp"), {"proj": "token_mix"}),
)
