"""Runs of a trainer that train one block at a time."""

from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_adam_mini import AdamMiniCallback, BAdam
from lightning_adam_mini.combine.blocks import find_blocks
from lightning_adam_mini.optim import state_bytes
from tests.callbacks.models import TokenModel, assert_equal, fit, weights


class Deep(TokenModel):
    """Two numbered layers between an embedding and a head."""

    def __init__(self, configure=None, **kwargs):
        super().__init__(configure, **kwargs)
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Seen(Callback):
    """What changed in each step, whose state there is, and its bytes."""

    def __init__(self):
        self.changed, self.held, self.bytes, self._before = [], [], [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._before = weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now, optimizer = weights(pl_module), trainer.optimizers[0]
        names = {p: name for name, p in pl_module.named_parameters()}
        self.changed.append(
            {name.split(".")[0] + name[7:10] * ("layers" in name) for name in now if not torch.equal(now[name], self._before[name])}
        )
        self.held.append({names[p].rpartition(".")[0] for p, state in optimizer.state.items() if state})
        self.bytes.append(state_bytes(optimizer))


BLOCKS = ["embed", "encoder.layers.0", "encoder.layers.1", "head"]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_one_block_trains_at_a_time(ours, order):
    badam, seen = BAdam(every=2, order=order), Seen()
    model = Deep()
    fit(model, *([AdamMiniCallback(monitoring=False)] if ours else []), badam, seen, max_epochs=1)
    assert list(find_blocks([name for name, _ in model.named_parameters()])) == BLOCKS
    expected = [BLOCKS[i] for i in (range(4) if order == "ascending" else range(3, -1, -1)) for _ in range(2)]
    for block, changed, held in zip(expected, seen.changed, seen.held, strict=True):
        assert len(changed) == 1
        assert all(name.startswith(block) for name in held)
    whole = Seen()
    fit(Deep(), *([AdamMiniCallback(monitoring=False)] if ours else []), whole, max_epochs=1)
    assert max(seen.bytes) < 0.55 * whole.bytes[-1]
    assert all(p.requires_grad for p in model.parameters())


def test_moments_begin_anew_and_equal_an_optimizer_of_the_block_alone():
    model = Deep()
    fit(model, BAdam(every=4, order="ascending", blocks=[["head.*"], ["embed.*"]]), max_epochs=1)
    by_hand = Deep()
    batches = list(by_hand.train_dataloader())
    for block, some in ((by_hand.head, batches[:4]), (by_hand.embed, batches[4:])):
        optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2)
        for batch in some:
            by_hand.zero_grad()
            nn.functional.cross_entropy(by_hand(batch[0]), batch[1]).backward()
            optimizer.step()
    assert_equal(weights(model), weights(by_hand))  # and the encoder, which is in no block, never trained


def test_one_block_of_all_is_adam_mini_to_the_bit():
    runs = []
    for callbacks in ([AdamMiniCallback()], [AdamMiniCallback(), BAdam(every=3, blocks=[["*"]])]):
        model = Deep()
        fit(model, *callbacks)
        runs.append(weights(model))
    assert_equal(*runs)


@pytest.mark.parametrize("every", [4, 3])  # a block ends with the epoch, or goes on
def test_a_run_resumes_exactly(tmp_path: Path, every):
    def once(folder, ckpt_path=None):
        model = Deep()
        saved = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        fit(model, AdamMiniCallback(), BAdam(every=every), saved, ckpt_path=ckpt_path, enable_checkpointing=True, max_epochs=3)
        return weights(model)

    assert_equal(once("whole"), once("again", str(tmp_path / "whole" / "epoch=0.ckpt")))


def test_random_orders_are_rounds():
    badam = BAdam(every=1, order="random", seed=3)
    rounds = [[badam.block_at(step, 5) for step in range(5 * turn, 5 * turn + 5)] for turn in range(4)]
    assert all(sorted(one) == list(range(5)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_beside_the_original():
    original = pytest.importorskip("badam", reason="badam is not installed").BlockOptimizer
    ours, theirs = Deep(), Deep()
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    ours.configure = lambda m: torch.optim.AdamW(m.parameters(), **settings)
    # Theirs switches a step early in the first block, so that only blocks of one step can be compared.
    fit(ours, BAdam(every=1, order="ascending", blocks=[["encoder.layers.0.*"], ["encoder.layers.1.*"], ["head.*"]]), max_epochs=1)
    inner = torch.optim.AdamW(theirs.parameters(), **settings)
    optimizer = original(
        base_optimizer=inner,
        named_parameters_list=list(theirs.named_parameters()),
        block_prefix_list=[["encoder.layers.0."], ["encoder.layers.1."], ["head."]],
        switch_block_every=1,
        switch_mode="ascending",
        verbose=0,
        include_embedding=False,
        include_lm_head=False,
    )
    for batch in theirs.train_dataloader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(batch[0]), batch[1]).backward()
        optimizer.step()
    for (name, a), b in zip(weights(ours).items(), weights(theirs).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"BAdam has no every=0. Give a whole number"),
        ({"order": "up"}, r"BAdam has no order='up'. Give one of ascending"),
        ({"blocks": []}, r"BAdam has no blocks=\[\]"),
        ({"blocks": ["head.*"]}, r"Give a list of globs for each block"),
        ({"blocks": 3}, r"BAdam has no blocks=3"),
        ({"blocks": [[3]]}, r"BAdam has no blocks=\[\[3\]\]"),
        ({"blocks": [["a.*"], ["a.*"]]}, r"BAdam has the block \['a\.\*'\] twice"),
        ({"seed": "x"}, r"BAdam has no seed='x'"),
    ],
)
def test_what_is_refused_at_once(settings, message):
    with pytest.raises(MisconfigurationException, match=message):
        BAdam(**settings)


class TwoOptimizers(Deep):
    """Two networks in turns, as in a GAN."""

    automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.AdamW(part.parameters()) for part in (self.encoder, self.head)]


def test_what_is_refused_when_the_fit_begins():
    class Flat(TokenModel):
        def __init__(self, configure=None):
            super().__init__(configure)
            del self.embed, self.encoder

        def forward(self, tokens):
            return self.head(nn.functional.one_hot(tokens, 16).float().mean(1))

    flat = Flat()
    flat.head.bias = None
    for model, callbacks, message in (
        (flat, [BAdam()], r"BAdam found no two blocks in Flat, with 1 trained parameter in"),
        (Deep(), [BAdam(blocks=[["heads.*"]])], r"BAdam's block of 'heads\.\*' matches no trained parameter, such as 'embed.weight'"),
        (Deep(), [AdamMiniCallback("muon"), BAdam()], r"BAdam does not go with orthogonalised updates .* 'encoder"),
        (TwoOptimizers(), [BAdam()], r"each of the 2 optimizers of TwoOptimizers needs one that trains"),
        (Deep(), [AdamMiniCallback(combine="schedule_free"), BAdam()], r"BAdam frees the states .* ScheduleFree"),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            fit(model, *callbacks)
    with pytest.raises(MisconfigurationException, match="ddp_find_unused_parameters_true"):
        fit(Deep(), BAdam(), strategy="ddp", devices=1)
