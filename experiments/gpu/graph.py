"""Whether a CUDA graph can hold a step, and what that saves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.gpu.case import Bench, Case
from experiments.gpu.models import TOY, gpt_60m
from experiments.statistics import paired, spread
from experiments.timing import take_turns
from lightning_adam_mini import AdamMini, partition_model

STEPS = 5


def cases(bench: Bench) -> list[Case]:
    """Return the cases.

    Args:
        bench: Where.
    """
    options: dict[str, dict[str, Any]] = {
        "a step": {},
        "a step, bfloat16 momentum": {"momentum_dtype": torch.bfloat16},
        "a step without the kernels": {"fused": False, "capturable": True},
        "a step, learning rate in a tensor": {"lr": torch.tensor(1e-3, device=bench.device), "capturable": True},
    }
    found = [Case(name, partial(of_step, bench, some)) for name, some in options.items()]
    return [*found, Case("a whole training step", partial(of_training, bench))]


def capture(bench: Bench, function: Callable[[], object]) -> Callable[[], object]:
    """Return what replays a function; in a rehearsal, what calls it.

    Args:
        bench: Where.
        function: What to capture; it has run before.
    """
    if bench.toy:
        return function
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def warm_up(bench: Bench, function: Callable[[], object], times: int = 3) -> None:
    """Run what will be captured, on a stream of its own.

    Args:
        bench: Where.
        function: What.
        times: How often.
    """
    if bench.toy:
        for _ in range(times):
            function()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            function()
    torch.cuda.current_stream().wait_stream(stream)


def _twins(bench: Bench) -> tuple[nn.Module, nn.Module]:
    workload = TOY if bench.toy else gpt_60m()
    model = workload.make(bench.device)
    return model, copy.deepcopy(model)


def _differences(ours: nn.Module, theirs: nn.Module) -> list[str]:
    return [name for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True) if not torch.equal(p, q)]


def of_step(bench: Bench, options: dict[str, Any]) -> dict[str, object]:
    """Replay a step beside one that is called.

    Args:
        bench: Where.
        options: Of the optimizers.
    """
    plain, captured = _twins(bench)
    layouts = partition_model(plain)
    options = {"lr": 1e-3, **options}
    own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in options.items()}
    eager, ours = (AdamMini(model.named_parameters(), layouts=layouts, **some) for model, some in ((plain, options), (captured, own)))  # pyright: ignore[reportArgumentType]

    def give(seed: int) -> None:
        torch.manual_seed(seed)
        for p, q in zip(plain.parameters(), captured.parameters(), strict=True):
            grad = torch.randn_like(p) * 0.01
            p.grad, q.grad = (grad.clone() if t.grad is None else t.grad.copy_(grad) for t in (p, q))

    give(0)
    for _ in range(3):
        eager.step()
    warm_up(bench, ours.step)
    assert not _differences(captured, plain), "they differ before anything is captured"
    replay = capture(bench, ours.step)
    for step in range(STEPS):
        give(step + 1)
        if isinstance(options["lr"], Tensor):  # what a graph reads may change
            options["lr"].mul_(0.5)
            own["lr"].mul_(0.5)
        eager.step()
        replay()
        differ = _differences(captured, plain)
        assert not differ, f"{len(differ)} tensors differ in step {step + 1}, as {differ[:5]}"
    times = take_turns({"eager": eager.step, "replay": replay}, 20, 3.0, bench.device)
    bench.need_cuda("graphs")
    ratio = paired(times["replay"].wall, times["eager"].wall)
    return {
        "equal": True,
        "eager_ms": spread(times["eager"].wall).centre * 1e3,
        "replay_ms": spread(times["replay"].wall).centre * 1e3,
        "ratio": ratio.text(".3f"),
    }


def of_training(bench: Bench) -> dict[str, object]:
    """Replay forward pass, backward pass and step beside called ones, on the same batches.

    Args:
        bench: Where.
    """
    plain, captured = _twins(bench)
    layouts, tokens = partition_model(plain), torch.zeros(2, 8 if bench.toy else 256, dtype=torch.int64, device=bench.device)
    eager, ours = (AdamMini(model.named_parameters(), lr=1e-3, layouts=layouts) for model in (plain, captured))

    def step(model: nn.Module, optimizer: AdamMini) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    torch.manual_seed(0)
    warm_up(bench, lambda: step(plain, eager))
    warm_up(bench, lambda: step(captured, ours))
    ours.zero_grad()  # gradients are made in the graph's own memory
    kept: list[Tensor] = []
    replay = capture(bench, lambda: kept.append(step(captured, ours)))
    off = 0.0
    for _ in range(STEPS):
        tokens.random_(0, 64)
        expected = step(plain, eager)
        replay()
        off = max(off, abs(kept[-1].item() - expected.item()) / abs(expected.item()))
    assert off < 1e-3, f"losses differ by {off:.2e}"
    bench.need_cuda("graphs")
    return {"largest_difference_of_losses": off}
