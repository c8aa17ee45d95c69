"""The callback finds heads by itself where looking does not, and no layer of a user's own stops a fit."""

from __future__ import annotations

import re
import warnings
from ast import literal_eval

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_adam_mini import AdamMini, AdamMiniCallback, AdamMiniWarning
from tests.callbacks import probe_ranks
from tests.callbacks.models import VOCABULARY, TokenModel, assert_differ, fit, weights
from tests.launch import run_ranks

WIDTH = 16
TRUTH = "2*(v:8x1|q:1x8|k:1x8)"


class Attention(nn.Module):
    """Two heads by hand, in an order that nothing says. Its forward wants an object of the user's own, so that it does not run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_kv, self.out = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 32), nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, batch: Batch) -> Tensor:
        assert isinstance(batch, Batch)  # which nobody makes up
        self.calls += 1
        v, q, k = self.to_qkv(batch.x).unflatten(-1, (2, 24)).transpose(1, 2).split(8, -1)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        k, v = self.to_kv(x).unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Batch:
    """What the attention takes."""

    def __init__(self, tokens: Tensor, x: Tensor) -> None:
        assert int(tokens.max()) < VOCABULARY
        assert x.shape[:2] == tokens.shape
        self.x = x


class ByHand(TokenModel):
    """Two layers of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.blocks = nn.Identity(), nn.ModuleList(Attention() for _ in range(2))

    def forward(self, tokens: list[Tensor] | Tensor) -> Tensor:
        assert isinstance(tokens, Tensor)
        assert tokens.shape == (8, 5)  # which nobody makes up
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(Batch(tokens, x))
        return self.head(x.mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert batch[1].shape == batch[0].shape[:1]
        return super().training_step(batch, batch_idx)


class Refusing(ByHand):
    """Its step fails when it is run once more on a batch, as one that keeps what it has seen may."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if not torch.is_grad_enabled():
            raise RuntimeError("not without gradients")
        return super().training_step(batch, batch_idx)


def test_heads_are_found_on_the_first_batch_without_being_asked_for() -> None:
    model = ByHand()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)  # nothing is left to say
        trainer = fit(model, AdamMiniCallback("adam_mini"))
    layouts = trainer.optimizers[0].layouts
    assert [layouts[f"blocks.{i}.to_qkv.weight"].lines for i in range(2)] == [TRUTH] * 2
    # A head of keys is one block, values go by line.
    assert [layouts[f"blocks.{i}.to_kv.weight"].lines for i in range(2)] == ["k:2x8|v:16x1"] * 2


def test_a_partition_without_heads_runs_nothing() -> None:
    model, plain = ByHand(), ByHand()
    fit(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)
        fit(model, AdamMiniCallback())
    assert [block.calls for block in model.blocks] == [block.calls for block in plain.blocks]


def test_without_a_probe_nothing_is_run_and_the_warning_is_accepted_as_pasted() -> None:
    model, plain = ByHand(), ByHand()
    fit(plain)
    with pytest.warns(AdamMiniWarning, match="heads") as told:
        fit(model, AdamMiniCallback("adam_mini", probe=False))
    assert [block.calls for block in model.blocks] == [block.calls for block in plain.blocks]
    message = next(str(w.message) for w in told if "overrides=" in str(w.message))
    assert "AdamMiniCallback(probe=True)" in message
    overrides = literal_eval(re.findall(r"overrides=(\{.*?\})", message)[0])
    assert set(overrides) == {"blocks.*.to_qkv.weight", "blocks.*.to_kv.weight"}  # one glob for each shape
    assert re.fullmatch(r"k:\d+x\d+\|v:\d+x\d+", overrides["blocks.*.to_kv.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)
        trainer = fit(ByHand(), AdamMiniCallback("adam_mini", overrides, probe=False))
    assert "k:" in str(trainer.optimizers[0].layouts["blocks.1.to_kv.weight"].lines)


def test_a_step_that_fails_when_it_is_probed_unasked_is_no_error() -> None:
    model = Refusing()
    before = weights(model)
    with pytest.warns(AdamMiniWarning, match="heads"):
        trainer = fit(model, AdamMiniCallback("adam_mini"))
    assert isinstance(trainer.optimizers[0], AdamMini)
    assert_differ(before, weights(model))
    with pytest.raises(ValueError, match="not without gradients"):  # asked for, it is one
        fit(Refusing(), AdamMiniCallback("adam_mini", probe=True))


class Conv2d(nn.Module):
    """A convolution with a scale that is made at run time, and a filter of its own beside it, as in EDM."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("resample_filter", torch.ones(1, 1, 2, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight[0].numel() ** 0.5, self.bias, padding=self.weight.shape[-1] // 2)


class EqualConv2d(nn.Module):
    """StyleGAN2's: weights of unit variance, and one dimension more where a style modulates them."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = nn.Linear(4, inputs)
        self.scale, self.padding = (inputs * kernel**2) ** -0.5, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        style = self.modulation(x.new_ones(len(x), 4))[:, :, None, None]
        return F.conv2d(x * style, self.weight[0] * self.scale, padding=self.padding)


class Deformable(nn.Module):
    """torchvision's, which is no nn.Conv2d, with the offsets that it wants."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        ops = pytest.importorskip("torchvision.ops")
        self.offsets = nn.Conv2d(inputs, 2 * kernel**2, 3, padding=1)
        self.conv = ops.DeformConv2d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offsets(x))


@pytest.mark.parametrize("partition", ["auto", "adam_mini", "adam_mini_v1", "factored", "tensor"])
@pytest.mark.parametrize("conv", [Conv2d, EqualConv2d, Deformable])
def test_fit_trains_convolutions_of_ones_own_from_the_first_layer_on(conv: type[nn.Module], partition: str) -> None:
    class Network(TokenModel):
        def __init__(self) -> None:
            super().__init__()
            del self.embed, self.encoder
            self.stem, self.body = conv(1, 8, 3), conv(8, WIDTH, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            images = tokens.float()[:, None, :, None] * tokens.float()[:, None, None, :] / VOCABULARY**2
            return self.head(self.body(self.stem(images).relu()).mean((2, 3)))

    model = Network()
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdamMiniWarning)
        trainer = fit(model, AdamMiniCallback(partition), max_epochs=1, limit_train_batches=3)
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, AdamMini)
    after = weights(model)
    assert all(after[name].isfinite().all() and not torch.equal(after[name], before[name]) for name in before)
    # Fewer second moments than elements: its weights are known to be matrices of some kind.
    assert optimizer.layouts[next(n for n in before if n.startswith("body") and before[n].dim() >= 4)].num_blocks < 8 * WIDTH


@pytest.mark.timeout(200)
def test_ranks_that_have_seen_different_things_have_the_same_blocks(tmp_path):
    outcomes = run_ranks(probe_ranks.train, 2, tmp_path, 2, seconds=90)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    (layouts, of_one), (others, of_other) = outcomes
    assert layouts == others
    assert layouts["encoder.to_qkv.weight"].lines == TRUTH
    assert all(torch.equal(of_one[name], of_other[name]) for name in of_one)
