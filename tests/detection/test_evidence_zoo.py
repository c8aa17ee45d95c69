"""Small models of the libraries: what running shows, and the truth as their forward code has it.

Run with ``-rP`` to see how many models agree.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_adam_mini.detection import inspect_model
from lightning_adam_mini.detection.evidence import Evidence, probe_attention
from tests.detection.evidence_models import HAND_WRITTEN

Spec = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Truth = dict[str, str]
"""Lines by glob of weights; ``axis 1`` before them where they are columns."""

IDS = torch.arange(12)[None]


def _timm(name: str, **options: Any) -> Callable[[], Spec]:
    def build() -> Spec:
        timm = pytest.importorskip("timm")
        size = options.get("img_size", 64)
        return timm.create_model(name, pretrained=False, num_classes=3, **options), (torch.randn(1, 3, size, size),), {}

    return build


def _vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Callable[[], Spec]:
    return _timm(name, **{"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, **options})


def _hf(kind: str, cls: str, inputs: dict[str, Tensor] | None = None, **options: Any) -> Callable[[], Spec]:
    def build() -> Spec:
        transformers = pytest.importorskip("transformers")
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        config = CONFIG_MAPPING[kind](**{"vocab_size": 64, "pad_token_id": 0, **options})
        return getattr(transformers, cls)._from_config(config), (), {"input_ids": IDS} if inputs is None else inputs

    return build


_SMALL: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
_GROUPED: dict[str, Any] = dict(_SMALL, num_key_value_heads=2, max_position_embeddings=32)
_PAIR: dict[str, Any] = dict(
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
)
_BOTH = {"input_ids": IDS, "decoder_input_ids": IDS[:, :7]}


def _torch(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Spec]:
    return lambda: (build(), tuple(torch.randn(shape) for shape in shapes), {})


def _diffusers(name: str, inputs: Callable[[], tuple[Any, ...] | dict[str, Any]], **options: Any) -> Callable[[], Spec]:
    def build() -> Spec:
        diffusers = pytest.importorskip("diffusers")
        given = inputs()
        model = getattr(diffusers, name)(**options)
        return (model, (), given) if isinstance(given, dict) else (model, given, {})

    return build


def _lora() -> Spec:
    peft = pytest.importorskip("peft")
    model, args, kwargs = _hf("llama", "LlamaForCausalLM", **_GROUPED)()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config), args, kwargs


def _gps() -> Spec:
    pyg = pytest.importorskip("torch_geometric.nn")
    return pyg.GPSConv(16, None, heads=4), (torch.randn(6, 16), torch.randint(0, 6, (2, 9)), torch.zeros(6, dtype=torch.long)), {}


def _reference(module: str, function: str, *args: Any) -> Callable[[], Spec]:
    def build() -> Spec:
        return getattr(pytest.importorskip(module), function)(*args)

    return build


_QKV = {"*q_proj.weight": "q:4x8", "*k_proj.weight": "k:4x8", "*v_proj.weight": "v:4x8"}
_GQA = {"*q_proj.weight": "q:4x8", "*k_proj.weight": "k:2x8", "*v_proj.weight": "v:2x8"}
_BERT = {"*.query.weight": "q:4x8", "*.key.weight": "k:4x8", "*.value.weight": "v:4x8"}
_TO = {"*to_q.weight": "q:2x16", "*to_k.weight": "k:2x16", "*to_v.weight": "v:2x16"}

MODELS: dict[str, tuple[Callable[[], Spec], Truth]] = {
    # torch
    "MultiheadAttention": (
        _torch(lambda: nn.MultiheadAttention(24, 3), *[(5, 2, 24)] * 3),
        {"in_proj_weight": "q:3x8|k:3x8|v:3x8"},
    ),
    "MultiheadAttention kdim": (
        _torch(lambda: nn.MultiheadAttention(24, 3, kdim=8, vdim=16, batch_first=True), (2, 5, 24), (2, 6, 8), (2, 6, 16)),
        {"q_proj_weight": "q:3x8", "k_proj_weight": "k:3x8", "v_proj_weight": "v:3x8"},
    ),
    "TransformerEncoder": (
        _torch(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval(), (2, 5, 16)),
        {"layers.*.self_attn.in_proj_weight": "q:2x8|k:2x8|v:2x8"},
    ),
    "Transformer": (
        _torch(lambda: nn.Transformer(16, 2, 1, 2, 32, batch_first=True), (2, 5, 16), (2, 4, 16)),
        {"*attn.in_proj_weight": "q:2x8|k:2x8|v:2x8"},
    ),
    # timm
    "vit": (_vit(), {"blocks.*.attn.qkv.weight": "q:3x16|k:3x16|v:3x16"}),
    "deit3": (_vit("deit3_small_patch16_224"), {"blocks.*.attn.qkv.weight": "q:3x16|k:3x16|v:3x16"}),
    "beit": (_vit("beit_base_patch16_224"), {"blocks.*.attn.qkv.weight": "q:3x16|k:3x16|v:3x16"}),
    "eva02": (
        _vit("eva02_tiny_patch14_224", img_size=56),
        {"blocks.*.attn.qkv.weight": "q:3x16|k:3x16|v:3x16"},
    ),
    "cait": (
        _vit("cait_xxs24_224", num_heads=4),  # talking heads, and a class token with queries of its own
        {
            "blocks.*.attn.qkv.weight": "q:4x12|k:4x12|v:4x12",
            "blocks_token_only.*.attn.q.weight": "q:4x12",
            "blocks_token_only.*.attn.k.weight": "k:4x12",
            "blocks_token_only.*.attn.v.weight": "v:4x12",
        },
    ),
    "xcit": (
        _vit("xcit_nano_12_p16_224", num_heads=4),
        {
            "blocks.*.attn.qkv.weight": "q:4x12|k:4x12|v:4x12",
            "cls_attn_blocks.*.attn.q.weight": "q:4x12",
            "cls_attn_blocks.*.attn.k.weight": "k:4x12",
            "cls_attn_blocks.*.attn.v.weight": "v:4x12",
        },
    ),
    "swin": (
        _timm("swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(2, 2), embed_dim=24, num_heads=(2, 3)),
        {"layers.0.*.qkv.weight": "q:2x12|k:2x12|v:2x12", "layers.1.*.qkv.weight": "q:3x16|k:3x16|v:3x16"},
    ),
    "swinv2": (
        _timm("swinv2_tiny_window8_256", img_size=64, window_size=4, depths=(2,), embed_dim=24, num_heads=(2,)),
        {"layers.0.*.qkv.weight": "q:2x12|k:2x12|v:2x12"},
    ),
    "davit": (
        _timm("davit_tiny", depths=(1,), embed_dims=(24,), num_heads=(2,)),
        {"*.0.0.attn.qkv.weight": "q:2x12|k:2x12|v:2x12", "*.0.1.attn.qkv.weight": "v:2x12|q:2x12|k:2x12"},
    ),
    "pvt_v2": (
        _timm("pvt_v2_b0", depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2), sr_ratios=(4, 2), mlp_ratios=(2, 2)),
        {
            "stages.0.*.q.weight": "q:1x16",
            "stages.0.*.kv.weight": "k:1x16|v:1x16",
            "stages.1.*.q.weight": "q:2x16",
            "stages.1.*.kv.weight": "k:2x16|v:2x16",
        },
    ),
    # transformers
    "bert": (_hf("bert", "BertForMaskedLM", **_SMALL), _BERT),
    "albert": (_hf("albert", "AlbertForMaskedLM", embedding_size=16, **_SMALL), _BERT),
    "gpt2": (_hf("gpt2", "GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4), {"*.attn.c_attn.weight": "axis 1 q:4x8|k:4x8|v:4x8"}),
    "gpt_bigcode": (_hf("gpt_bigcode", "GPTBigCodeForCausalLM", n_embd=32, n_layer=1, n_head=4), {"*.c_attn.weight": "q:4x8|k:1x8|v:1x8"}),
    "gpt_neox": (_hf("gpt_neox", "GPTNeoXForCausalLM", **_SMALL), {"*.query_key_value.weight": "4*(q:1x8|k:1x8|v:1x8)"}),
    "bloom": (_hf("bloom", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4), {"*.query_key_value.weight": "4*(q:1x8|k:1x8|v:1x8)"}),
    "falcon": (
        _hf("falcon", "FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2, **_SMALL),
        {"*.query_key_value.weight": "2*(q:2x8|k:1x8|v:1x8)"},
    ),
    "falcon multi-query": (_hf("falcon", "FalconForCausalLM", **_SMALL), {"*.query_key_value.weight": "q:4x8|k:1x8|v:1x8"}),
    "codegen": (
        _hf("codegen", "CodeGenForCausalLM", n_embd=64, n_layer=1, n_head=8, rotary_dim=4),
        {"*.qkv_proj.weight": "4*(q:2x8|v:2x8|k:2x8)"},
    ),
    "llama": (_hf("llama", "LlamaForCausalLM", **_GROUPED), _GQA),
    "qwen3": (_hf("qwen3", "Qwen3ForCausalLM", **_GROUPED, head_dim=16), {k: v.replace("x8", "x16") for k, v in _GQA.items()}),
    "olmo2": (_hf("olmo2", "Olmo2ForCausalLM", **_GROUPED), _GQA),
    "phi3": (_hf("phi3", "Phi3ForCausalLM", **_GROUPED), {"*.qkv_proj.weight": "q:4x8|k:2x8|v:2x8"}),
    "mixtral": (_hf("mixtral", "MixtralForCausalLM", **_GROUPED, num_local_experts=2), _GQA),
    "deepseek_v2": (
        _hf(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            **dict(_SMALL, q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, first_k_dense_replace=2),
        ),
        {"*.q_b_proj.weight": "q:4x12", "*.kv_a_proj_with_mqa.weight": "n:10|k:1x4", "*.kv_b_proj.weight": "4*(k:1x8|v:1x6)"},
    ),
    "t5": (
        _hf("t5", "T5ForConditionalGeneration", _BOTH, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=3, decoder_start_token_id=0),
        {"*Attention.q.weight": "q:3x8", "*Attention.k.weight": "k:3x8", "*Attention.v.weight": "v:3x8"},
    ),
    "bart": (_hf("bart", "BartForConditionalGeneration", _BOTH, **_PAIR, decoder_start_token_id=0), _QKV),
    "xlnet": (
        _hf("xlnet", "XLNetLMHeadModel", d_model=32, n_layer=1, n_head=4, d_inner=64),  # (in, heads, head) tensors
        {"*.q": "axis 1 q:4x1", "*.k": "axis 1 k:4x1", "*.v": "axis 1 v:4x1", "*.r": "axis 1 k:4x1"},
    ),
    "lora": (_lora, {"*q_proj.*": "q:4x8", "*k_proj.*": "k:2x8", "*v_proj.*": "v:2x8"}),
    # diffusers
    "DiT": (
        _diffusers(
            "DiTTransformer2DModel",
            lambda: (torch.randn(1, 4, 8, 8), torch.ones(1, dtype=torch.long), torch.ones(1, dtype=torch.long)),
            **dict(num_attention_heads=2, attention_head_dim=16, num_layers=1, sample_size=8, norm_num_groups=2),
        ),
        _TO,
    ),
    "UNet2DCondition": (
        _diffusers(
            "UNet2DConditionModel",
            lambda: (torch.randn(1, 4, 8, 8), torch.ones(1), torch.randn(1, 5, 12)),
            **dict(block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=12, attention_head_dim=2),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        _TO,
    ),
    "Flux": (
        _diffusers(
            "FluxTransformer2DModel",
            lambda: dict(
                hidden_states=torch.randn(1, 6, 8),
                encoder_hidden_states=torch.randn(1, 3, 12),
                pooled_projections=torch.randn(1, 12),
                timestep=torch.ones(1),
                img_ids=torch.zeros(6, 3),
                txt_ids=torch.zeros(3, 3),
            ),
            **dict(in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2),
            **dict(joint_attention_dim=12, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8)),
        ),
        {**_TO, "*add_q_proj.weight": "q:2x16", "*add_k_proj.weight": "k:2x16", "*add_v_proj.weight": "v:2x16"},
    ),
    # torch-geometric
    "GPSConv": (_gps, {"attn.in_proj_weight": "q:4x4|k:4x4|v:4x4"}),
}


def _wrong(evidence: Evidence, truth: Truth) -> list[str]:
    """What running showed that is not true, and what it did not show."""
    weights = {p.name: p for p in evidence.parameters if not p.is_bias}
    wrong = [f"{glob}: not seen" for glob in truth if not any(fnmatchcase(name, glob) for name in weights)]
    for name, p in weights.items():
        expected = next((lines for glob, lines in truth.items() if fnmatchcase(name, glob)), None)
        shown = (f"axis {p.axis} " if p.axis else "") + p.lines
        if shown != expected:
            wrong.append(f"{name}: {shown}, not {expected}")
    for p in evidence.parameters:
        weight = next(
            (weights[n] for n in (p.name.removesuffix("bias") + "weight", p.name.removesuffix("_bias") + "_weight") if n in weights), None
        )
        if p.is_bias and weight is not None and p.lines != weight.lines:
            wrong.append(f"{p.name}: {p.lines}, but its weight {weight.lines}")
    return wrong


@cache
def _probe(name: str) -> Evidence:
    torch.manual_seed(0)
    model, args, kwargs = MODELS[name][0]()
    return probe_attention(model, *args, **kwargs)


@pytest.mark.parametrize("name", MODELS)
def test_running_shows_the_truth(name: str) -> None:
    evidence, truth = _probe(name), MODELS[name][1]
    assert _wrong(evidence, truth) == []
    assert evidence.not_seen == ()
    assert evidence.parameters


def test_at_least_thirty_models_agree() -> None:
    agree = []
    for name, (_, truth) in MODELS.items():
        try:
            agree += [name] if not _wrong(_probe(name), truth) else []
        except pytest.skip.Exception:
            continue
    print(f"{len(agree)} of {len(MODELS)} models of libraries, {len(HAND_WRITTEN)} more by hand: {', '.join(agree)}")
    if all(importlib.util.find_spec(n) for n in ("timm", "transformers", "diffusers")):
        assert len(agree) >= 30


@pytest.mark.parametrize("name", ["vit", "llama", "gpt2", "Transformer"])
def test_running_confirms_what_modules_and_structure_say(name: str) -> None:
    model, args, kwargs = MODELS[name][0]()
    before = inspect_model(model, probe=False)
    evidence = probe_attention(model, *args, **kwargs)
    after = inspect_model(model, evidence=evidence)
    for p in evidence.parameters:
        # A bias has no belief of its own beside its weight's lines.
        assert after.by_name[p.name].reason.endswith("confirmed by running") or p.is_bias
        assert not after.by_name[p.name].guess
        assert after.by_name[p.name].lines == before.by_name[p.name].lines
