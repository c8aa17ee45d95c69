"""Line orders read from source code, against the attention maps that a change of each row moves."""

import copy

import pytest
import torch
from torch import nn

from lightning_adam_mini.detection import Architecture, Role, inspect_model
from lightning_adam_mini.lines import parse_lines

WIDTH, HEADS, SIZE, GROUPS = 24, 4, 6, 2


class Base(nn.Module):
    """Attention that gives its maps, so that a test can see which rows make which head."""

    outputs = 3 * WIDTH

    def __init__(self):
        super().__init__()
        self.n_head, self.n_embd, self.groups, self.size = HEADS, WIDTH, GROUPS, SIZE
        self.mixed, self.last = nn.Linear(WIDTH, self.outputs), nn.Linear(WIDTH, WIDTH)

    def attend(self, q, k, v):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        maps = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.last((maps @ v).transpose(1, 2).flatten(2)), maps


class StackedAttention(Base):
    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.mixed(x).split(self.n_embd, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        return self.attend(q, k, v)


class ChunkedAttention(Base):
    def forward(self, x):
        B, T, C = x.shape
        query, key, value = torch.chunk(self.mixed(x), 3, dim=-1)
        query, key, value = [t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (query, key, value)]
        return self.attend(query, key, value)


class RoleFirstAttention(Base):
    def forward(self, x):
        B, T, C = x.shape
        qkv = self.mixed(x).reshape(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.attend(q, k, v)


class HeadFirstAttention(Base):
    def forward(self, x):
        B, T, C = x.shape
        qkv = self.mixed(x).reshape(B, T, self.n_head, 3, C // self.n_head).permute(3, 0, 2, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return self.attend(q, k, v)


class AlternatingAttention(Base):
    def forward(self, x):
        B, T, C = x.shape
        qkv = self.mixed(x).reshape(B, T, self.n_head, C // self.n_head, 3).permute(4, 0, 2, 1, 3)
        q, k, v = qkv.unbind(0)
        return self.attend(q, k, v)


class GroupedFastHeadAttention(Base):
    outputs = WIDTH + 2 * GROUPS * SIZE

    def forward(self, x):
        B, T, C = x.shape
        k, v, q = self.mixed(x).split([self.groups * self.size, self.groups * self.size, C], -1)
        q = q.view(B, T, self.size, self.n_head).permute(0, 3, 1, 2)
        k = k.view(B, T, self.groups, self.size).transpose(1, 2)
        v = v.view(B, T, self.groups, self.size).transpose(1, 2)
        return self.attend(q, k, v)


class HelperAttention(Base):
    """What a helper function does is not in the source of the method."""

    def forward(self, x):
        q, k, v = cut(self, self.mixed(x))
        return self.attend(q, k, v)


def cut(module, x):
    return [t.unflatten(-1, (module.n_head, -1)).transpose(1, 2) for t in x.chunk(3, -1)]


def moved_maps(module, row, x):
    """The heads whose map a change of one row of the mixed projection moves."""
    changed = copy.deepcopy(module)
    changed.mixed.weight.data[row] += 3
    before, after = module(x)[1][0], changed(x)[1][0]
    return [head for head in range(HEADS) if not torch.equal(before[head], after[head])]


@pytest.mark.parametrize(
    "cls",
    [StackedAttention, ChunkedAttention, RoleFirstAttention, HeadFirstAttention, AlternatingAttention, GroupedFastHeadAttention],
)
def test_rows_that_move_a_map_are_those_that_the_line_order_says(cls):
    torch.manual_seed(0)
    module, x = cls(), torch.randn(1, 5, WIDTH)
    p = inspect_model(module).by_name["mixed.weight"]
    assert (p.role, p.guess) == (Role.QKV, False)
    lines = parse_lines(p.lines).expand()
    key_heads = len({head for role, head in lines if role == "k"})
    for row, (role, head) in enumerate(lines):
        share = HEADS // key_heads if role == "k" else 1
        expected = [] if role == "v" else list(range(head * share, (head + 1) * share))
        assert moved_maps(module, row, x) == expected, (row, role, head)


def test_source_that_does_not_say_is_a_guess_and_not_a_claim():
    report = inspect_model(HelperAttention())
    p = report.by_name["mixed.weight"]
    assert (p.role, p.lines, p.guess) == (Role.QKV, None, True)
    assert report.architecture is Architecture.TRANSFORMER


def test_the_projection_behind_attention_is_found_without_a_name():
    assert inspect_model(StackedAttention()).by_name["last.weight"].role is Role.ATTN_OUT
