"""A probe leaves nothing behind."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_adam_mini.detection.evidence import probe_attention


class Stateful(nn.Module):
    """Attention, and everything that a forward may change: statistics, counters, caches, parameters, random numbers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True, dropout=0.1)
        self.codebook = nn.Parameter(torch.ones(3))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("last", None)
        self.calls = 0
        self.cache: torch.Tensor | None = None

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        self.last = x.mean()
        with torch.no_grad():
            self.codebook.mul_(0.9)
        x.mul_(2)
        noise = random.random() + np.random.rand()
        h = self.dropout(self.norm(x.transpose(1, 2)).transpose(1, 2)) + noise
        self.cache = h
        return self.attn(h, h, h)[0]


def _snapshot(model, x):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return (
        state,
        x.clone(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        model.calls,
        model.cache,
        model.training,
    )


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training):
    model, x = Stateful().train(training), torch.randn(2, 5, 16)
    model.codebook.grad = torch.ones(3)
    handle = model.register_forward_hook(lambda *_: None)
    before = _snapshot(model, x)
    evidence = probe_attention(model, x)
    after = _snapshot(model, x)
    assert evidence.by_name["attn.in_proj_weight"].lines == "q:2x8|k:2x8|v:2x8"
    torch.testing.assert_close(after[:3], before[:3], rtol=0, atol=0)
    assert after[3:] == before[3:]
    assert torch.equal(model.codebook.grad, torch.ones(3))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "codebook")
    assert list(model._forward_hooks) == [handle.id]
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()


def test_a_failing_forward_changes_nothing_either():
    class Failing(Stateful):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("no")

    model, x = Failing(), torch.randn(2, 5, 16)
    before = _snapshot(model, x)
    with pytest.raises(ValueError, match="Cannot probe Failing"):
        probe_attention(model, x)
    after = _snapshot(model, x)
    torch.testing.assert_close(after[:3], before[:3], rtol=0, atol=0)
    assert after[3:] == before[3:]
    assert not nn.modules.module._global_forward_hooks


def test_inside_a_forward_hook_and_a_running_step():
    model, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(probe_attention(module, *args)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    handle.remove()
    # The hook ran for the probe's own forward too; a probe in a probe says so and does nothing.
    assert [e.by_name["self_attn.in_proj_weight"].lines for e in seen if e.parameters] == ["q:2x8|k:2x8|v:2x8"]
    assert [e.not_seen[0].reason for e in seen if not e.parameters] == ["a probe is already running"]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_through_checkpoints(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=reentrant)

    x = torch.randn(2, 5, 16, requires_grad=True)
    assert probe_attention(Checkpointed(), x).by_name["layer.self_attn.in_proj_weight"].lines == "q:2x8|k:2x8|v:2x8"


def test_a_compiled_model_is_probed_without_compilation():
    model = torch.compile(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), backend="eager")
    evidence = probe_attention(model, torch.randn(2, 5, 16))  # pyright: ignore[reportArgumentType]
    assert evidence.by_name["self_attn.in_proj_weight"].lines == "q:2x8|k:2x8|v:2x8"


def test_in_inference_mode():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with torch.inference_mode():
        assert probe_attention(model, torch.randn(2, 5, 16)).attentions == ("self_attn",)


def test_the_tape_keeps_no_activation_alive():
    import gc
    import weakref

    refs = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            h = self.a(x)
            refs.append(weakref.ref(h.untyped_storage()))
            out = self.b(h.relu())
            del h
            gc.collect()
            refs.append(refs[0]())
            return out

    probe_attention(Watching(), torch.randn(3, 8))
    assert refs[1] is None
