"""One AdamMini step on small models of many kinds, against Algorithm 1 in float64 numpy; what the blocks are is counted by hand."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, inspect_model, partition_model
from tests.peers.transcription import first_step, labels_of, line_labels

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SETTINGS: dict[str, Any] = dict(lr=0.1, betas=(0.9, 0.95), eps=1e-8)
DECAY = 0.1


def library(name: str) -> Any:
    """A library, or a skip that names it."""
    return pytest.importorskip(name, reason=f"{name} is not installed, so that its models are not stepped")


def timm(name: str, **options: Any) -> nn.Module:
    return library("timm").create_model(name, pretrained=False, num_classes=7, **options)


def mixer() -> nn.Module:
    library("timm")
    module = importlib.import_module("timm.models.mlp_mixer")
    return module.MlpMixer(7, img_size=32, patch_size=16, num_blocks=2, embed_dim=32)


def hf(kind: str, cls: str, **options: Any) -> nn.Module:
    transformers = library("transformers")
    return getattr(transformers, cls)._from_config(transformers.AutoConfig.for_model(kind, **options))


def diffusers(cls: str, **options: Any) -> nn.Module:
    return getattr(library("diffusers"), cls)(**options)


def pyg(name: str, *args: Any, **options: Any) -> nn.Module:
    nn_module = importlib.import_module(f"{library('torch_geometric').__name__}.nn")
    return getattr(nn_module, name)(*args, **options)


def holder(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


class HandWritten(nn.Module):
    """A block of a user's own."""

    def __init__(self, dim: int = 24, heads: int = 3):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        q = q.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        k = k.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = v.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(x)


def tied_lstm() -> nn.Module:
    model = holder(embedding=nn.Embedding(30, 12), rnn=nn.LSTM(12, 12, 2), output=nn.Linear(12, 30))
    model.output.weight = model.embedding.weight  # type: ignore[union-attr]
    return model


def captioner() -> nn.Module:
    cnn = nn.Sequential(*(nn.Conv2d(a, 16, 3) for a in (3, 16, 16, 16)))
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32), 1)
    return holder(cnn=cnn, words=nn.Embedding(30, 16), decoder=decoder)


def graph_and_transformer() -> nn.Module:
    body = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False)
    return holder(gnn=pyg("GCN", 8, 16, 2), body=body)


TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=60)
GROUPED = TINY | dict(num_key_value_heads=2)
TOWER = {k: v for k, v in TINY.items() if k != "vocab_size"}
VIT = dict(img_size=32, depth=2)
T5 = dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=60)
BART = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=60)
BART |= dict(encoder_ffn_dim=48, decoder_ffn_dim=48)
UNET = dict(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=8)
CROSS = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
LINEARS = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)]

# (model, {parameter: number of its blocks}). 4 heads where nothing else is said; in other networks than transformers one block per tensor.
MODELS: dict[str, tuple[Any, dict[str, int]]] = {
    "vit": (lambda: timm("vit_tiny_patch16_224", embed_dim=32, num_heads=4, **VIT), {"blocks.1.attn.qkv.weight": 4 + 4 + 32}),
    "cait": (lambda: timm("cait_xxs24_224", embed_dim=32, num_heads=4, **VIT), {"blocks_token_only.0.attn.q.weight": 4}),
    "xcit": (lambda: timm("xcit_nano_12_p8_224", embed_dim=32, num_heads=4, **VIT), {"blocks.0.attn.qkv.weight": 40}),
    "swin": (
        lambda: timm("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(2, 4), img_size=56),
        {"layers.1.blocks.0.attn.qkv.weight": 4 + 4 + 32},
    ),
    "levit": (
        lambda: timm("levit_128s", embed_dim=(32, 48), key_dim=8, depth=(1, 1), num_heads=(2, 3)),
        {"stages.0.blocks.0.attn.qkv.linear.weight": 2 + 2 + 2 * 16},
    ),
    "mobilevit": (lambda: timm("mobilevit_xxs"), {"stages.2.1.transformer.0.attn.qkv.weight": 4 + 4 + 64}),
    "mixer": (mixer, {"blocks.0.mlp_tokens.fc1.weight": 1}),
    "resnet": (lambda: timm("resnet18", channels=(8, 8, 16, 16)), {"layer4.1.conv2.weight": 1, "fc.weight": 1, "fc.bias": 1}),
    "convnext": (lambda: timm("convnext_atto", dims=(8, 16, 16, 32)), {"stages.0.blocks.0.mlp.fc1.weight": 1}),
    "mobilenet": (lambda: timm("mobilenetv3_small_050"), {"conv_stem.weight": 1}),
    "bert": (lambda: hf("bert", "BertModel", **TINY), {"encoder.layer.0.attention.self.query.weight": 4}),
    "albert": (lambda: hf("albert", "AlbertModel", embedding_size=16, **TINY), {"embeddings.word_embeddings.weight": 60}),
    "deberta-v2": (lambda: hf("deberta-v2", "DebertaV2Model", **TINY), {"encoder.layer.1.attention.self.key_proj.weight": 4}),
    "gpt2": (lambda: hf("gpt2", "GPT2LMHeadModel", n_embd=32, n_head=4, n_layer=1, vocab_size=60), {"h.0.attn.c_attn.weight": 40}),
    "gpt_neox": (
        lambda: hf("gpt_neox", "GPTNeoXForCausalLM", **TINY),
        {"layers.1.attention.query_key_value.weight": 40, "lm_head.weight": 60},
    ),
    "llama": (lambda: hf("llama", "LlamaForCausalLM", **GROUPED), {"layers.0.self_attn.k_proj.weight": 2, "lm_head.weight": 60}),
    "qwen3": (lambda: hf("qwen3", "Qwen3ForCausalLM", head_dim=16, **GROUPED), {"layers.0.self_attn.q_proj.weight": 4}),
    "phi3": (
        lambda: hf("phi3", "Phi3ForCausalLM", pad_token_id=0, **GROUPED),
        {"layers.0.self_attn.qkv_proj.weight": 4 + 2 + 16, "layers.0.mlp.gate_up_proj.weight": 96},
    ),
    "mixtral": (lambda: hf("mixtral", "MixtralForCausalLM", num_local_experts=3, **GROUPED), {"self_attn.q_proj.weight": 4}),
    "bloom": (
        lambda: hf("bloom", "BloomModel", hidden_size=32, n_layer=1, n_head=4, vocab_size=60),
        {"h.0.self_attention.query_key_value.weight": 4 + 4 + 32},
    ),
    "falcon": (
        lambda: hf("falcon", "FalconModel", num_kv_heads=2, new_decoder_architecture=True, **TINY),
        {"h.0.self_attention.query_key_value.weight": 4 + 2 + 16},
    ),
    "opt": (lambda: hf("opt", "OPTModel", ffn_dim=48, word_embed_proj_dim=32, **TINY), {"layers.0.fc1.weight": 48}),
    "t5": (lambda: hf("t5", "T5Model", **T5), {"decoder.block.0.layer.1.EncDecAttention.k.weight": 4}),
    "bart": (lambda: hf("bart", "BartModel", **BART), {"decoder.layers.0.encoder_attn.q_proj.weight": 4}),
    "mamba": (lambda: hf("mamba", "MambaModel", hidden_size=16, num_hidden_layers=1, vocab_size=60), {"mixer.in_proj.weight": 64}),
    "clip": (
        lambda: hf("clip", "CLIPModel", text_config=TINY, vision_config=TOWER | dict(image_size=32, patch_size=16), projection_dim=16),
        {"vision_model.encoder.layers.0.self_attn.q_proj.weight": 4},
    ),
    "unet": (
        lambda: diffusers("UNet2DModel", **UNET, down_block_types=("AttnDownBlock2D",) * 2, up_block_types=("AttnUpBlock2D",) * 2),
        {"mid_block.attentions.0.to_q.weight": 1},
    ),
    "unet-condition": (
        lambda: diffusers("UNet2DConditionModel", cross_attention_dim=16, **UNET, **CROSS),
        {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": 1},
    ),
    "dit": (
        lambda: diffusers("DiTTransformer2DModel", num_attention_heads=4, attention_head_dim=8, num_layers=1, sample_size=8),
        {"transformer_blocks.0.attn1.to_q.weight": 4},
    ),
    "flux": (
        lambda: diffusers(
            "FluxTransformer2DModel", num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=8, in_channels=4,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
        ),
        {"single_transformer_blocks.0.attn.to_k.weight": 2},
    ),
    "autoencoder": (lambda: diffusers("AutoencoderKL", block_out_channels=(8,), norm_num_groups=4), {"encoder.conv_in.weight": 1}),
    "gcn": (lambda: pyg("GCN", 8, 16, 2, 7), {"convs.0.lin.weight": 1, "convs.0.bias": 1}),
    "gat": (lambda: pyg("GAT", 8, 16, 2, 7, heads=4), {"convs.0.lin.weight": 1}),
    "graphsage": (lambda: pyg("GraphSAGE", 8, 16, 2, 7), {"convs.1.lin_l.weight": 1}),
    "transformer-conv": (lambda: pyg("TransformerConv", 8, 4, heads=4), {"lin_query.weight": 1}),
    "gps": (lambda: pyg("GPSConv", 8, pyg("GINConv", nn.Sequential(*LINEARS)), heads=2), {"attn.in_proj_weight": 1}),
    "schnet": (lambda: pyg("SchNet", 16, 16, 2, 8), {"interactions.0.conv.lin1.weight": 1}),
    "nn.Transformer": (
        lambda: nn.Transformer(16, 2, 1, 1, 32),
        {"decoder.layers.0.multihead_attn.in_proj_weight": 2 + 2 + 16, "encoder.layers.0.linear2.bias": 16},
    ),
    "nn.MultiheadAttention": (lambda: nn.MultiheadAttention(16, 2, kdim=8, vdim=12), {"k_proj_weight": 2, "v_proj_weight": 16}),
    "tied LSTM": (tied_lstm, {"rnn.weight_hh_l1": 1, "embedding.weight": 1}),
    "GRU": (lambda: nn.GRU(6, 8, bidirectional=True), {"weight_ih_l0_reverse": 1}),
    "hand-written": (lambda: nn.ModuleList([HandWritten(), HandWritten()]), {"1.qkv.weight": 3 + 3 + 24, "1.mlp.0.weight": 96}),
    "mlp": (lambda: nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)), {"2.weight": 1}),
    "captioner": (captioner, {"cnn.1.weight": 1, "words.weight": 30, "decoder.layers.0.self_attn.in_proj_weight": 2 + 2 + 16}),
    "graph and transformer": (graph_and_transformer, {"gnn.convs.0.lin.weight": 1, "body.layers.0.linear1.weight": 32}),
}  # fmt: skip


def give_gradients(model: nn.Module) -> None:
    """Gradients whose size differs from line to line in every dimension, so that no two blocks are alike."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        grad = torch.randn(p.shape, generator=generator)
        for dim, size in enumerate(p.shape):
            along = [1] * p.ndim
            along[dim] = size
            grad *= torch.exp(torch.randn(size, generator=generator)).view(along)
        p.grad = grad


@pytest.mark.parametrize("name", MODELS)
def test_a_step_equals_algorithm_1_in_float64(name):
    build, counted = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        model = build()
    report = inspect_model(model)
    layouts = partition_model(report, "adam_mini")
    for suffix, blocks in counted.items():
        of_model = {n: x.num_blocks for n, x in layouts.items() if n == suffix or n.endswith(f".{suffix}")}
        assert set(of_model.values()) == {blocks}, (suffix, of_model)
    give_gradients(model)
    before = {n: p.detach().clone().numpy() for n, p in model.named_parameters()}
    optimizer = AdamMini(model.named_parameters(), layouts=layouts, weight_decay=DECAY, **SETTINGS)
    optimizer.step()
    moments = optimizer.second_moments()
    assert moments.keys() == before.keys()
    for n, p in model.named_parameters():
        assert p.grad is not None
        labels = labels_of(layouts[n])
        expected, v = first_step(before[n], p.grad.numpy(), labels, decay=DECAY, **SETTINGS)
        assert v.size == layouts[n].num_blocks, n
        # float32 rounds at the size of what is subtracted.
        scale = np.abs(before[n]) + np.abs(expected - before[n]) + 1e-12
        assert np.max(np.abs(p.detach().double().numpy() - expected) / scale) < 5e-6, n
        np.testing.assert_allclose(np.broadcast_to(moments[n].double().numpy(), p.shape), v[labels], rtol=2e-5, err_msg=n)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("q:2x2|k:1x2|v:3", "q0 q0 q1 q1 k0 k0 v0 v0 v0"),
        ("2*(q:1x2|k:1x1|v:1)", "q0 q0 k0 v0 q1 q1 k1 v0"),
        ("q:2x3t", "q0 q1 q0 q1 q0 q1"),
        ("2*[q,k,v*]x2", "q0 k0 v0 q0 k0 v1 q1 k1 v2 q1 k1 v3"),
        ("2*[q,v+]x1", "q0 v0 q1 v0"),
    ],
)
def test_labels_of_lines_by_hand(lines, expected):
    assert [f"{role}{number}" for role, number in line_labels(lines)] == expected.split()


def test_the_comparison_can_fail():
    """Another partition is another step: the value as one block."""
    model = nn.MultiheadAttention(16, 2)
    layout = partition_model(model, "adam_mini")["in_proj_weight"]
    other = partition_model(model, "adam_mini", value="whole")["in_proj_weight"]
    p, g = np.ones((48, 16)), np.random.default_rng(0).normal(size=(48, 16))
    one, two = (first_step(p, g, labels_of(x), decay=0.0, **SETTINGS)[0] for x in (layout, other))
    assert np.array_equal(one[:32], two[:32])
    assert np.abs(one[32:] - two[32:]).max() > 1e-2
