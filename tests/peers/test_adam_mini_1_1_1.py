"""Step-for-step equality with PyPI adam-mini 1.1.1 where its name rules and our detection mean the same partition."""

from __future__ import annotations

import pytest
import timm
import torch
from adam_mini import Adam_mini
from torch import nn

from lightning_adam_mini import AdamMini, inspect_model, partition_model

DIM, HEADS, KV_HEADS = 32, 4, 2


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=DIM, intermediate_size=48, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS
    )
    return LlamaForCausalLM(config)


def groups_as_the_peer_decays(model: nn.Module, weight_decay: float) -> list[dict]:
    """The peer silently decays nothing whose name contains norm, ln or bias: our users say so in groups."""
    undecayed = [("norm" in n or "ln" in n or "bias" in n, (n, p)) for n, p in model.named_parameters()]
    return [
        {"params": [pair for is_undecayed, pair in undecayed if not is_undecayed], "weight_decay": weight_decay},
        {"params": [pair for is_undecayed, pair in undecayed if is_undecayed], "weight_decay": 0.0},
    ]


def compare(make, peer_options: dict, partition_options: dict) -> None:
    torch.manual_seed(0)
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    settings = dict(lr=2e-3, betas=(0.9, 0.95), eps=1e-8)
    peer = Adam_mini(twin.named_parameters(), weight_decay=0.1, verbose=False, **settings, **peer_options)
    layouts = partition_model(model, "adam_mini", **partition_options)
    ours = AdamMini(groups_as_the_peer_decays(model, 0.1), layouts=layouts, **settings)
    for step in range(30):
        torch.manual_seed(step)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p) * 10 ** torch.randn(())
            q.grad = p.grad.clone()
        ours.step()
        peer.step()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            # Sums over a block are rounded in another order, and the steps carry it on.
            torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6, msg=lambda m, n=name, s=step: f"{n} after step {s}: {m}")


def test_llama_equals_the_official_optimizer():
    compare(llama, dict(dim=DIM, n_heads=HEADS, n_kv_heads=KV_HEADS), {})


def test_llama_differs_if_the_partition_does():
    """The comparison can fail: one block a value matrix is another partition."""
    with pytest.raises(AssertionError, match="v_proj"):
        compare(llama, dict(dim=DIM, n_heads=HEADS, n_kv_heads=KV_HEADS), dict(value="whole"))


def test_resnet18_equals_the_official_optimizer():
    """Convolutions and norms by tensor in both; the peer keeps biases per parameter, which Algorithm 3 does not."""
    compare(lambda: timm.create_model("resnet18", num_classes=10, channels=(8, 16, 16, 24)), {}, dict(bias="parameter"))


def test_roles_behind_the_equality():
    report = inspect_model(llama())
    assert report.by_name["model.layers.0.self_attn.k_proj.weight"].lines == "k:2x8"
    assert report.by_name["model.layers.1.self_attn.q_proj.weight"].lines == "q:4x8"
