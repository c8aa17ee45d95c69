"""Attention that is run alone: what it shows, and that nothing of the user's module is touched."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_adam_mini import inspect_model
from lightning_adam_mini.detection.evidence import DoesNotRunError, Evidence, NotSeen, probe_call
from lightning_adam_mini.detection.layers import claim_layers
from lightning_adam_mini.detection.mending import Trials
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.running import claim_running, run_alone
from lightning_adam_mini.detection.tree import Tree

WIDTH = 24


class Attention(nn.Module):
    """Two heads that nothing declares; their lines are in the order that ``stacked`` says."""

    def __init__(self, stacked: bool = True, index: int = 0) -> None:
        super().__init__()
        self.stacked, self.layer_idx = stacked, index
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.qkv(x)
        if self.stacked:
            q, k, v = h.unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = h.unflatten(-1, (2, 3, 12)).permute(3, 0, 2, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


STACKED, BY_HEAD = "q:2x12|k:2x12|v:2x12", "2*(q:1x12|k:1x12|v:1x12)"


def _lines(model: nn.Module) -> list[str | None]:
    return [p.lines for p in inspect_model(model).parameters if p.name.endswith("qkv.weight")]


class Stateful(Attention):
    """Changes all that a forward may change: buffers, counters, caches, parameters, random numbers, its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.norm, self.seen, self.cache = nn.BatchNorm1d(WIDTH), [], None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.qkv.bias.mul_(0.5)
        self.steps += 1
        self.seen.append(random.random() + torch.rand(()).item())
        self.cache = self.norm(x.mT).mT
        self.last = x
        self.eval()
        return super().forward(F.dropout(self.cache))


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_as_it_was(training: bool) -> None:
    model = nn.Sequential(Stateful(), Stateful()).train(training)
    called: list[int] = []
    handle = model[0].register_forward_hook(lambda *_: called.append(1))
    objects = {name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    attributes = [{k: v for k, v in vars(m).items() if not isinstance(v, dict)} for m in model.modules()]
    assert _lines(model) == [STACKED, STACKED]  # they were run
    assert {name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())} == objects
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert [{k: v for k, v in vars(m).items() if not isinstance(v, dict)} for m in model.modules()] == attributes
    assert all(m.training is training for m in model.modules())
    assert [part.seen for part in model] == [[], []]
    assert list(model[0]._forward_hooks) == [handle.id]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not nn.modules.module._global_forward_hooks
    assert torch.is_grad_enabled()


class Raising(Attention):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("cannot go on")


class Refusing(Attention):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError(f"{x.shape} is not what I take")


@pytest.mark.parametrize("build", [Raising, Refusing])
def test_a_forward_that_raises_is_a_guess_and_says_nothing(build: type[nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(build())
    before = dict(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight = inspect_model(model).by_name["0.qkv.weight"]
    assert (weight.lines, weight.guess) == (None, True)
    assert all(p is before[name] for name, p in model.named_parameters())
    assert capfd.readouterr() == ("", "")


class Loud(Attention):
    def forward(self, x: Tensor) -> Tensor:
        print("running")
        warnings.warn("running", stacklevel=1)
        return super().forward(x)


def test_a_forward_that_prints_and_warns_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _lines(nn.Sequential(Loud())) == [STACKED]
    assert capfd.readouterr() == ("", "")


class Endless(Attention):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = x + self.qkv(x)[..., :WIDTH]


def test_a_forward_that_never_ends_is_given_up_in_time() -> None:
    tree = Tree.of(nn.Sequential(Endless(), Endless()))
    claim_layers(tree)
    start = time.monotonic()
    claim_running(tree, seconds=1.0)
    assert time.monotonic() - start < 5  # with room for a busy machine
    assert all(slot.is_open for slot in tree.slots)


def test_two_settings_of_one_class_have_two_line_orders() -> None:
    model = nn.Sequential(*(Attention(stacked) for stacked in (True, False, True)))
    assert _lines(model) == [STACKED, BY_HEAD, STACKED]


class Counting(Attention):
    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs += 1
        return super().forward(x)


def test_layers_alike_are_run_once_and_each_gets_its_lines() -> None:
    def runs(depth: int) -> int:
        Counting.runs = 0
        assert _lines(nn.Sequential(*(Counting(False, index) for index in range(depth)))) == [BY_HEAD] * depth
        return Counting.runs

    assert runs(6) - 6 == runs(1) - 1 == 1  # one of them alone, and all of them as a whole


class Fixed(Attention):
    """Insists on a number of tokens, which nothing but its forward says."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3 * tokens * tokens))
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (2, 3, 12)).permute(3, 0, 2, 1, 4)
        scores = q @ k.mT + self.bias[::3].view(self.tokens, -1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("tokens", [16, 37, 100])
def test_a_module_that_insists_on_a_number_of_tokens_gets_it(tokens: int) -> None:
    assert _lines(nn.Sequential(Fixed(tokens), Fixed(tokens))) == [BY_HEAD] * 2


def test_no_input_is_longer_than_a_thousand_tokens() -> None:
    class Huge(Attention):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] <= 1024
            raise RuntimeError(f"the size ({x.shape[1]}) must match 10000000000")

    assert inspect_model(Huge()).by_name["qkv.weight"].guess


class Weights(nn.Module):
    """Two heads of queries and keys in turn, whose weights other modules use."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.make(x).unflatten(-1, (2, 2, 12)).permute(3, 0, 2, 1, 4)
        return torch.softmax(q @ k.mT, -1)


class Use(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.back = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.back((weights @ self.read(x).unflatten(-1, (2, 5)).transpose(1, 2)).transpose(1, 2).flatten(2))


class Shared(nn.Module):
    """One attention's weights, used of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.first, self.second = Weights(), Use(), Use()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        x = x + self.first(x, weights)
        return x + self.second(x, weights)


def test_weights_may_be_made_in_one_module_and_used_in_others() -> None:
    report = inspect_model(nn.Sequential(Shared(), Shared()))
    for i in range(2):
        assert report.by_name[f"{i}.weights.make.weight"].lines == "2*(q:1x12|k:1x12)"
        assert {report.by_name[f"{i}.{use}.read.weight"].lines for use in ("first", "second")} == {"v:2x5"}
        assert {report.by_name[f"{i}.{use}.back.weight"].role for use in ("first", "second")} == {Role.ATTN_OUT}
    assert not report.guesses


def test_weights_whose_use_is_not_seen_are_a_guess() -> None:
    class Alone(Weights):
        def forward(self, x: Tensor) -> Tensor:
            return x * super().forward(x).mean((1, 2))[..., None]

    report = inspect_model(nn.Sequential(Alone(), Alone(), nn.Linear(WIDTH, 2)))
    assert report.by_name["0.make.weight"].guess
    assert report.by_name["0.make.weight"].lines is None


class Parallel(nn.Module):
    """Attention and a gated feed-forward read one matrix, as in PaLM."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.one, self.other = nn.Linear(WIDTH, 3 * WIDTH + 64), nn.Linear(WIDTH, WIDTH), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads, gate, up = self.fused(x).split((3 * WIDTH, 32, 32), -1)
        q, k, v = heads.unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        return x + self.one(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) + self.other(F.silu(gate) * up)


def test_what_reads_the_rest_of_a_fused_projection_is_the_end_of_a_feed_forward() -> None:
    report = inspect_model(nn.Sequential(Parallel(), Parallel()))
    assert [p.role for p in report.parameters if p.name.startswith("1.") and len(p.shape) == 2] == [Role.QKV, Role.ATTN_OUT, Role.MLP_DOWN]
    assert report.by_name["1.fused.weight"].lines == f"{STACKED}|n:64"


def test_nothing_is_run_without_leave() -> None:
    Counting.runs = 0
    model = nn.Sequential(Counting())
    inspect_model(model, probe=False)
    inspect_model(model, heads=False)
    assert Counting.runs == 0


class Grid(nn.Module):
    """Takes a feature map and the two sides of it."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.sizes, self.heads = nn.Conv2d(21, 33, 1), (3, 5), 7

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.to_q(x)


class Pair(nn.Module):
    """Takes two streams of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 14), nn.Linear(11, 14)

    def forward(self, x: Tensor, context: Tensor, mask: Any = None) -> Tensor:
        return self.q(x) @ self.k(context).mT


@pytest.mark.parametrize("module", [Attention(), Grid(), Pair(), nn.Linear(3, 5), nn.Linear(7, 11)], ids=lambda m: repr(m)[:9])
def test_no_two_sizes_of_a_made_up_input_are_alike(module: nn.Module) -> None:
    weights = {size for p in module.parameters() for size in p.shape}
    calls = list(Trials(module, "meta"))
    assert calls
    for call in calls:
        for value in (*call.args, *call.kwargs.values()):
            if isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point():
                assert len(set(value.shape)) == value.dim(), value.shape
                assert sum(size in weights for size in value.shape) <= 1, value.shape  # its width; nothing else is as large as one


def _heads(x: Tensor, heads: int = 4) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class Attends(nn.Module):
    """Softmax attention over what its own layers make."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(24, 24), nn.Linear(24, 24)
        self.num_heads = 4

    def forward(self, x: Tensor) -> Tensor:
        return (torch.softmax(_heads(self.q(x)) @ _heads(self.k(x)).mT, -1) @ _heads(x)).transpose(1, 2).reshape(x.shape)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_modules_of_torchscript_are_left_alone():
    model = Attends()
    model.last = torch.jit.script(nn.Linear(24, 24))
    before = list(model.parameters())
    inspect_model(model)
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    model(torch.randn(1, 3, 24))


def test_an_exit_in_a_forward_ends_nothing():
    class Exits(Attends):
        def forward(self, x: Tensor) -> Tensor:
            raise SystemExit(3)

    assert inspect_model(Exits()).by_name["q.weight"].guess


def test_hooks_and_random_numbers_are_not_touched():
    model, heard = Attends(), []
    model.factor = torch.randn(1)
    model.register_forward_hook(lambda *call: heard.append(call))
    state = torch.get_rng_state()
    assert inspect_model(model).by_name["q.weight"].lines == "q:4x6"
    assert not heard
    assert len(model._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["_fast", "layer_idx", "settings"])
def test_twins_that_read_a_setting_are_run_one_by_one(name):
    class Twin(Attends):
        def __init__(self, fast: int) -> None:
            super().__init__()
            setattr(self, name, {"fast": fast} if name == "settings" else fast)

        def cut(self, x: Tensor) -> Tensor:
            fast = self.settings["fast"] if name == "settings" else (self.layer_idx if name == "layer_idx" else self._fast)
            return x.view(*x.shape[:2], 6, 4).permute(0, 3, 1, 2) if fast else _heads(x)

        def forward(self, x: Tensor) -> Tensor:
            return (torch.softmax(self.cut(self.q(x)) @ self.cut(self.k(x)).mT, -1) @ _heads(x)).transpose(1, 2).reshape(x.shape)

    report = inspect_model(nn.Sequential(Twin(0), Twin(1)))
    assert [report.by_name[f"{i}.q.weight"].lines for i in range(2)] == ["q:4x6", "q:4x6t"]


def test_a_forward_that_waits_for_ever_is_ended():
    code = textwrap.dedent("""
        import threading, torch
        from torch import nn
        from lightning_adam_mini import inspect_model
        class Waits(nn.Module):
            def __init__(self):
                super().__init__()
                self.q, self.k, self.num_heads, self.locks = nn.Linear(8, 8), nn.Linear(8, 8), 2, [threading.Lock()]
            def forward(self, x):
                self.locks[0].acquire()
                raise ValueError("with the lock held")
        print(inspect_model(Waits()).by_name["q.weight"].guess)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.skipif(torch.distributed.is_initialized(), reason="another test left its process group")
def test_sharded_modules_are_run_whole():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        model = nn.Sequential(Attends(), Attends())
        for module in (*model, model):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        before = list(model.parameters())
        assert inspect_model(model).by_name["1.q.weight"].lines == "q:4x6"
        assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    finally:
        torch.distributed.destroy_process_group()


class Absorbed(nn.Module):
    """Latent attention whose keys are made within the queries: a matrix for each head, that no line order of the weight can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(WIDTH, 2 * 10), nn.Linear(14, 2 * (10 + 7)), nn.Linear(14, WIDTH)
        self.latent = nn.Linear(WIDTH, 14)

    def forward(self, x: Tensor) -> Tensor:
        q, c, of = self.a(x).unflatten(-1, (2, 10)), self.latent(x), self.b.weight.view(2, 17, 14)
        scores = torch.einsum("bshc,btc->bsht", torch.einsum("bshd,hdc->bshc", q, of[:, :10]), c).softmax(-1)
        return self.out(torch.einsum("bshc,hdc->bshd", torch.einsum("bsht,btc->bshc", scores, c), of[:, 10:]).flatten(2))


def test_a_matrix_for_each_head_within_a_weight_is_a_guess() -> None:
    report = inspect_model(nn.Sequential(Absorbed(), Absorbed()))
    assert report.by_name["1.b.weight"].guess
    assert "do not lie along one dimension" in report.by_name["1.b.weight"].reason


def test_what_was_not_seen_of_queries_says_nothing_of_a_parameter_called_queries() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.randn(5, WIDTH))

    before = inspect_model(Model())
    assert inspect_model(Model(), evidence=Evidence(not_seen=(NotSeen("", "queries: no layer makes it"),))) == before
    marked = inspect_model(Model(), evidence=Evidence(not_seen=(NotSeen("", "queries: its heads disagree", "queries"),)))
    assert "which feeds attention; its heads disagree" in marked.by_name["queries"].reason


class Clicks(nn.Module):
    """Whole numbers for two of three arguments, and a width of its own for the third."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.fc = nn.Embedding(9, 6), nn.Embedding(4, 6), nn.Linear(17, 1)

    def forward(self, user: Tensor, item: Tensor, dense: Tensor) -> Tensor:
        return self.fc(torch.cat([self.users(user), self.items(item), dense], -1))


class Branch(nn.Module):
    """Two inputs of different widths and numbers of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Linear(21, 10), nn.Linear(3, 10)

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        u, y = self.branch(u), self.trunk(y)
        batch, width = u.shape
        return torch.einsum("bw,bnw->bn", u.view(batch, width), y)


class Clip(nn.Module):
    """Frames of an image each, of a size that its last layer fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.conv, self.fc = nn.Parameter(torch.zeros(1, 1, 8)), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 25, 6)

    def forward(self, frames: Tensor) -> Tensor:
        b, t, c, h, w = frames.shape
        return self.fc(self.conv(frames.reshape(b * t, c, h, w)).flatten(1))


class Sums(nn.Module):
    """A graph as a dense matrix of who is beside whom."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(14, 11), nn.Linear(11, 5)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return torch.mm(beside, self.second(torch.mm(beside, self.first(x)).relu()))


class Named(nn.Module):
    """A batch by name, whose parts are of other widths and kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image, self.fc = nn.Embedding(31, 8), nn.Conv2d(3, 6, 3), nn.Linear(14, 5)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.fc(torch.cat([self.words(batch["text"]).mean(1), self.image(batch["pixels"]).mean((2, 3))], -1))


class Attributes(Named):
    def forward(self, data: Any) -> Tensor:
        return super().forward({"text": data.words, "pixels": data.image})


class Several(Named):
    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        words, image = batch
        return super().forward({"text": words, "pixels": image})


class Pooled(nn.Module):
    """A vector of each sample beside features of places, and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.pooled, self.enter, self.leave = nn.Embedding(11, 20), nn.Linear(17, 20), nn.Linear(13, 20), nn.Linear(20, 3)

    def forward(self, hidden_states: Tensor, pooled: Tensor, y: Tensor) -> Tensor:
        b, _, _ = hidden_states.shape
        c = (self.kinds(y) + self.pooled(pooled)).view(b, 1, 20)
        return self.leave(self.enter(hidden_states) + c)


class Video(nn.Module):
    """Frames in five dimensions, of which it wants squares of a size that only its positions say."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.places, self.fc = nn.Conv2d(4, 22, 2, 2), nn.Parameter(torch.zeros(1, 16, 22)), nn.Linear(22, 5)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        b, f, c, h, w = x.shape
        return self.fc(self.patch(x.view(b * f, c, h, w)).flatten(2).mT + self.places)


class Edges(nn.Module):
    """A graph with numbers of its edges and the graph of each node."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.edge, self.leave = nn.Linear(9, 12), nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor) -> Tensor:
        source, target = edge_index
        h = self.enter(x)
        h = h.index_add(0, target, h[source] * self.edge(edge_attr))
        return self.leave(torch.zeros(int(batch.max()) + 1, 12).index_add(0, batch, h))


MENDED = [Clicks, Branch, Clip, Sums, Named, Attributes, Several, Pooled, Video, Edges]


@pytest.mark.parametrize("build", MENDED)
def test_an_input_is_mended_as_the_error_asks_for(build: type[nn.Module]) -> None:
    evidence, ran = run_alone(build(), time.monotonic() + 20, once=True)
    assert ran
    assert evidence.whole.unread


def test_what_led_to_a_failure_is_known() -> None:
    module = Pooled()
    fits = (torch.rand(3, 7, 13), torch.rand(3, 17), torch.zeros(3, dtype=torch.long))
    for place, wrong, where in (
        (0, torch.rand(3, 7, 5), (3, 7, 5)),
        (1, torch.rand(3, 6), (3, 6)),
        (2, torch.zeros(4, dtype=torch.long), (4, 20)),
    ):
        inputs = [wrong if place == i else good for i, good in enumerate(fits)]
        with pytest.raises(DoesNotRunError) as caught:
            probe_call(module, lambda: module(*inputs), inputs, alone=True)  # noqa: B023
        assert where in caught.value.failure.blamed[place]
        assert set(caught.value.failure.blamed) <= {place, 1}
    assert probe_call(module, lambda: module(*fits), fits, alone=True).whole.unread == ("leave.weight",)


class Gathers(nn.Module):
    """Asks the other processes, as momentum contrast does for its negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        dist.all_reduce(x)
        ANSWERS.append(x)
        return x


ANSWERS: list[Tensor] = []


def test_other_processes_are_not_called(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert not run_alone(Gathers(), time.monotonic() + 20)[1]
        assert not ANSWERS
        inspect_model(Gathers(), torch.rand(2, 12))  # all processes run the user's example
        assert len(ANSWERS) == 1
    finally:
        dist.destroy_process_group()


class Two(nn.Module):
    """Two layers; what else its forward does is up to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


def test_a_teacher_that_no_attribute_shows_keeps_its_weights() -> None:
    class Averaging(Two):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = [nn.Linear(16, 30)]  # hidden from the state dict

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                for mine, its in zip(self.one.parameters(), self.teacher[0].parameters(), strict=True):
                    its.lerp_(mine, 0.5)
            return super().forward(x)

    model = Averaging()
    before = model.teacher[0].weight.clone()
    inspect_model(model)
    assert torch.equal(model.teacher[0].weight, before)


def test_what_a_forward_sets_for_the_process_is_set_back() -> None:
    class Setting(Two):
        def __init__(self) -> None:
            super().__init__()
            self.generator = random.Random(3)

        def forward(self, x: Tensor) -> Tensor:
            self.generator.random()
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(True)
            return super().forward(x)

    model = Setting()
    state = model.generator.getstate()
    inspect_model(model)
    assert torch.get_default_dtype() is torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert model.generator.getstate() == state


def test_settings_of_the_user_are_neither_changed_nor_in_the_way() -> None:
    before = torch.get_deterministic_debug_mode()
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        if precision is not None:  # then torch does not say the precision of products in the old way
            matmul.fp32_precision = "tf32"
        evidence, ran = run_alone(Two(), time.monotonic() + 5, once=True)
        assert ran
        assert evidence.whole.unread == ("two.weight",)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode(before)
        if precision is not None:
            matmul.fp32_precision = precision


def test_a_forward_that_catches_all_its_errors_is_ended_too() -> None:
    code = textwrap.dedent("""
        import contextlib, time
        from torch import nn
        from lightning_adam_mini import inspect_model
        class Polls(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(16, 30), nn.Linear(30, 4)
            def forward(self, x):
                while True:
                    with contextlib.suppress(Exception):
                        time.sleep(0.5)
        print(inspect_model(Polls()).architecture)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "mlp", done.stderr


def test_a_run_that_ended_before_its_end_shows_no_output() -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(16, 64), nn.Conv1d(10, 3, 3)

        def forward(self, x: Tensor) -> Tensor | None:
            h = self.encode(x)
            try:
                return self.decode(h)
            except RuntimeError:
                return None

    class Stops(Two):
        def forward(self, x: Tensor, logits: bool = False) -> Tensor:
            return super().forward(x) if logits else self.one(x)

    for model, name in ((Gives(), "encode.weight"), (Stops(), "one.weight")):
        assert inspect_model(model).by_name[name].role is not Role.CLASSIFIER


def test_many_settings_leave_sizes_that_none_of_them_has() -> None:
    class Deep(Two):
        def __init__(self) -> None:
            super().__init__()
            self.order, self.places = list(range(3, 60)), nn.ModuleList(nn.Identity() for _ in range(60))
            for i, place in enumerate(self.places):
                place.index = i

    evidence, ran = run_alone(Deep(), time.monotonic() + 5, once=True)
    assert ran
    assert evidence.whole.unread == ("two.weight",)
