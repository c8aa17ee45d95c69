import math
from dataclasses import replace
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout

from lightning_adam_mini import BlockLayout, partition_model
from lightning_adam_mini.analysis.audit import Verdict, audit_partition, audit_partitions
from lightning_adam_mini.analysis.audit.segments import group_text
from lightning_adam_mini.analysis.audit.verdict import Compared, explained
from recipes.language.gpt import GPT
from tests.callbacks.models import ConvModel, TokenModel


def gpt(fused=False):
    torch.manual_seed(0)
    model = GPT(16, 24, layers=1, heads=4, width=32, tied=False, fused_qkv=fused)
    x = torch.randint(16, (4, 25))
    return model, lambda module: cross_entropy(module(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def verdicts(audit):
    return {finding.segment.name: finding for finding in audit.findings}


QUERY, KEY = "blocks.0.attn.q_proj.weight", "blocks.0.attn.k_proj.weight"


def test_right_heads_match():
    model, loss = gpt()
    found = verdicts(audit_partition(model, loss, partition_model(model, "adam_mini"), columns=16))
    for name in (QUERY, KEY):
        assert found[name].verdict is Verdict.MATCHES
        assert found[name].own.share.share > 0.99
        assert found[name].own.share.null < 0.6


def test_wrong_heads_are_told_and_the_overrides_are_accepted():
    model, loss = gpt()
    wrong = {QUERY: {"role": "query", "heads": 8}, KEY: {"role": "key", "heads": 2}}
    audit = audit_partition(model, loss, partition_model(model, "adam_mini", wrong), columns=16)
    found = verdicts(audit)
    assert found[QUERY].verdict is Verdict.FINER
    assert found[KEY].verdict is Verdict.TOO_COARSE
    assert audit.overrides[QUERY] == {"dims": [1], "axis": 0, "lines": "q:4x8"}
    corrected = partition_model(model, "adam_mini", {**wrong, **audit.overrides})
    right = partition_model(model, "adam_mini")
    assert corrected[QUERY] == right[QUERY]
    assert corrected[KEY] == right[KEY]
    lines = {line.split()[0]: line for line in audit.table().splitlines() if line.startswith("blocks")}
    assert lines[QUERY].endswith("finer than needed: 4 heads")
    assert lines[KEY].endswith("too coarse: 4 heads")


def test_several_partitions_are_audited_by_the_same_columns():
    model, loss = gpt(fused=True)
    partitions = {name: partition_model(model, name) for name in ("adam_mini", "factored", "tensor")}
    del partitions["tensor"]["norm.weight"]
    both = audit_partitions(model, loss, partitions, columns=8)
    for name, layouts in partitions.items():
        alone = audit_partition(model, loss, layouts, columns=8)
        # As text, because nan is not equal to itself.
        assert {f.segment.name: str(f) for f in both[name].findings} == {f.segment.name: str(f) for f in alone.findings}
        assert both[name].overrides == alone.overrides


def test_heads_of_a_fused_projection_are_told_by_role():
    model, loss = gpt(fused=True)
    name = "blocks.0.attn.qkv_proj.weight"
    layouts = {name: BlockLayout.grouped((96, 32), "q:8x4|k:2x16|v:32x1")}
    audit = audit_partition(model, loss, layouts, columns=16)
    assert {f.segment.role: f.verdict for f in audit.findings}.keys() == {"q", "k", "v"}
    assert audit.overrides[name]["lines"].startswith("q:4x8|k:4x8|v:")
    assert partition_model(model, "adam_mini", audit.overrides)[name].lines.startswith("q:4x8|k:4x8|v:")


def test_a_tensor_is_too_coarse_for_rows_of_their_own():
    module = nn.Linear(6, 4, bias=False)  # each row a quadratic of its own
    x = torch.randn(50, 6) @ torch.randn(6, 6)
    loss = partial(lambda x, m: (m(x) * torch.tensor([1.0, 3.0, 10.0, 30.0])).square().mean(), x)
    audit = audit_partition(module, loss, {"weight": BlockLayout.whole((4, 6))})
    assert (audit.findings[0].verdict, audit.findings[0].suggestion.label) == (Verdict.TOO_COARSE, "rows")
    assert audit.overrides == {"weight": {"dims": [1]}}
    assert audit_partition(module, loss, {"weight": BlockLayout((4, 6), dims=(1,))}).overrides == {}
    crossing = audit_partition(module, loss, {"weight": BlockLayout((4, 6), dims=(0,))}).findings[0]
    assert (crossing.verdict, crossing.suggestion.label) == (Verdict.ELSEWHERE, "rows")


def test_what_has_no_curvature_is_said():
    class KeyBias(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    torch.manual_seed(0)
    module, x = KeyBias(), torch.randn(5, 2, 8)
    layouts = {name: layout for name, layout in partition_model(module, "adam_mini").items() if "bias" in name}
    audit = audit_partition(module, lambda m: m(x).sin().mean(), layouts)
    found = {f.segment.name: f.verdict for f in audit.findings}
    assert found["attention.in_proj_bias[k]"] is Verdict.FLAT  # softmax does not see it
    assert found["attention.in_proj_bias[v]"] is not Verdict.FLAT


@pytest.mark.parametrize("kind", [TokenModel, ConvModel])
def test_a_batch_of_a_lightning_module(kind):
    model = kind()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = next(iter(model.train_dataloader()))
    audit = audit_partition(model, batch, partition_model(model, "auto"), columns=8, examples=6)
    assert {f.segment.parameter.name for f in audit.findings} | set(audit.left_out) == dict(model.named_parameters()).keys()
    assert any("first 6 of the batch's 8 examples" in note for note in audit.notes)
    assert all(f.columns == min(8, math.prod(f.segment.shape)) for f in audit.findings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    partition_model(model, "auto", audit.overrides)


def test_frozen_weights_are_left_out_and_said():
    model, loss = gpt()
    model.lm_head.requires_grad_(False)
    audit = audit_partition(model, loss, partition_model(model), columns=1)
    assert audit.left_out == {"lm_head.weight": "frozen"}
    assert "Left out, frozen: lm_head.weight." in audit.table()


def test_an_interrupt_keeps_what_is_done():
    model, loss = gpt()

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    audit = audit_partition(model, loss, partition_model(model), columns=16, progress=interrupt)
    assert any("by an interrupt" in note for note in audit.notes)
    assert all(f.columns == 8 for f in audit.findings if f.segment.shape[0] > 16)
    assert any(f.verdict is not Verdict.UNKNOWN for f in audit.findings)


def test_time_is_kept():
    model, loss = gpt()
    audit = audit_partition(model, loss, partition_model(model), columns=10**6, seconds=0.5)
    assert any("by the clock" in note for note in audit.notes)
    assert audit.findings


def test_second_moments_are_explained_by_another_half():
    noise = [torch.rand(40, 30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert explained(noise, BlockLayout((40, 30))) == 0  # elements explain no noise
    rows = torch.linspace(1, 9, 40)[:, None] ** 2
    assert explained([rows * n for n in noise], BlockLayout((40, 30), dims=(1,))) > 0.4
    assert explained([rows.expand(40, 30)] * 2, BlockLayout((40, 30), dims=(0,))) == 0


def test_groups_as_text():
    assert group_text([0, 0, 1, 1, 0], "q") == "g_a:2|g_b:2|g_a:1"
    layout = BlockLayout.grouped((5, 2), "g_a:2|g_b:2|g_a:1")
    assert layout.num_blocks == 2


MISTAKES = {
    "shape": (lambda m: {"weight": BlockLayout((2, 2))}, {}, r"is for shape \(2, 2\), but the parameter has \(3, 2\)"),
    "name": (lambda m: {"weigth": BlockLayout((3, 2))}, {}, "layout of 'weigth', which is no parameter"),
    "nothing": (lambda m: {}, {}, "nothing to audit"),
    "seconds": (lambda m: {"weight": BlockLayout((3, 2))}, {"seconds": 0}, "some seconds, columns and examples"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case):
    module = nn.Linear(2, 3, bias=False)
    layouts, options, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        audit_partition(module, lambda m: m.weight.square().sum(), layouts(module), **options)


def test_a_module_without_a_loss():
    module = nn.Linear(2, 3, bias=False)
    with pytest.raises(ValueError, match="Linear gives no loss of a batch.*lambda module"):
        audit_partition(module, torch.randn(4, 2), {"weight": BlockLayout((3, 2))})


class Asks(TokenModel):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.trainer.world_size


class Steps(TokenModel):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Skips(TokenModel):
    def training_step(self, batch, batch_idx):
        return None


class Unpacks(TokenModel):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x, y), batch_idx)


STEPS = {
    "asks the trainer": (Asks, "asks its Trainer.*PartitionAudit"),
    "steps": (Steps, "Steps steps its optimizers itself .*lambda module"),
    "skips": (Skips, "Skips returned NoneType, which is no loss.*lambda module"),
    "no batch": (Unpacks, "Unpacks raised TypeError of a batch of type NoneType: cannot unpack"),
    "a loader": (Unpacks, "Unpacks raised .*Error of a batch of type DataLoader: .*one batch as its data loader yields it"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_training_step_that_gives_no_loss(case):
    kind, message = STEPS[case]
    model = kind()
    loader = model.train_dataloader()
    batch = {"no batch": None, "a loader": loader}.get(case, next(iter(loader)))
    with pytest.raises(ValueError, match=message):
        audit_partition(model, batch, partition_model(model))


def test_a_loss_may_be_any_callable():
    class Square:
        def __call__(self, module):
            return module(torch.ones(3, 2)).square().mean()

    module = nn.Linear(2, 3, bias=False)
    audit = audit_partition(module, Square(), {"weight": BlockLayout((3, 2))})
    assert audit.findings[0].columns == 6


def test_a_sparse_gradient_is_left_out_and_said():
    module = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3))
    audit = audit_partition(module, lambda m: m(torch.tensor([1, 2])).square().mean(), partition_model(module))
    assert audit.left_out == {"0.weight": "of a sparse gradient (sparse=True)"}
    assert {finding.segment.name for finding in audit.findings} == {"1.weight", "1.bias"}


class Own(L.LightningModule):
    """A frozen backbone with batch norm, a recurrent layer, dropout, and an output layer that is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.backbone = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6)).requires_grad_(False)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = self.lstm(self.backbone(self.embedding(x).transpose(1, 2)).transpose(1, 2))[0]
        h = dropout(self.norm(h.transpose(1, 2)).transpose(1, 2), 0.2)
        loss = cross_entropy(self.head(h).flatten(0, 1), y.flatten())
        self.log("loss", loss)
        return {"loss": loss}


def test_what_an_own_module_may_hold():
    torch.manual_seed(0)
    model, x = Own(), torch.randint(10, (8, 7))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit = audit_partition(model, (x, x.roll(1, 1)), partition_model(model, "auto"), columns=8)
    assert {f.segment.parameter.name for f in audit.findings} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(audit.left_out.values()) == {"frozen"}
    assert [f.segment.role for f in audit.findings if f.segment.parameter.name == "lstm.weight_ih_l0"] == [
        "input",
        "forget",
        "cell",
        "output",
    ]
    assert any("draws random numbers" in note for note in audit.notes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_override_says_what_is_so_already():
    model, loss = gpt(fused=True)
    name = "blocks.0.attn.qkv_proj.weight"
    layout = BlockLayout.factored((96, 32))
    audit = audit_partition(model, loss, {name: layout}, columns=16)
    (first, *rest) = audit.findings
    rows = Compared("rows", BlockLayout((32, 32), dims=(1,)), first.own.share, 0.0)
    one = replace(audit, findings=(replace(first, suggestion=rows, near=False), *(replace(f, suggestion=None) for f in rest)))
    every = replace(audit, findings=tuple(replace(f, suggestion=rows, near=False) for f in audit.findings))
    assert one.overrides == {}  # the others need columns, which one parameter has or has not
    assert f"other lines of the parameter need its layout: {name}." in one.table()
    assert "other lines" not in every.table()
    assert partition_model(model, "factored", every.overrides)[name].num_blocks == 96


def test_what_is_near_another_verdict_is_marked_and_not_among_the_overrides():
    model, loss = gpt()
    audit = audit_partition(model, loss, partition_model(model, "adam_mini", {QUERY: {"role": "query", "heads": 8}}), columns=16)
    (query,) = [finding for finding in audit.findings if finding.segment.name == QUERY]
    assert not query.near
    doubtful = replace(audit, findings=tuple(replace(f, near=True) if f is query else f for f in audit.findings))
    assert QUERY in audit.overrides
    assert QUERY not in doubtful.overrides


class Dense(nn.Module):
    """Whose Hessian is the same everywhere, and whose gradients differ by noise alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 8))

    def forward(self, noise):
        return {"loss": self.weight.sum().square() / 96 + (noise * self.weight).sum((1, 2)).mean()}


def test_second_moments_that_show_nothing_do_not_speak_for_one_block():
    noise = torch.randn(64, 6, 8, generator=torch.Generator().manual_seed(0))
    audit = audit_partition(Dense(), noise, {"weight": BlockLayout((6, 8), dims=(1,))}, examples=64)
    (weight,) = audit.findings
    assert weight.own.share.share == pytest.approx(weight.own.share.null)
    assert weight.own.moments < 0.1
    assert weight.verdict is Verdict.MATCHES
    assert "too little to tell" in weight.reason
    assert not audit.overrides
