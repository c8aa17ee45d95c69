"""Whether models and steps that torch.compile has compiled train as others do."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from experiments.gpu.case import Bench, Case
from experiments.gpu.fit import fit, sequences
from experiments.gpu.models import llama
from experiments.workloads import Tensors, Workload, add_random_gradients
from lightning_adam_mini import AdamMini, partition_model

STEPS = 8
FEW = Workload("few", "Four tensors", lambda: Tensors([(8, 16), (16,), (4, 3, 3, 3), (24, 8)]))


def cases(bench: Bench) -> list[Case]:
    """Return the cases.

    Args:
        bench: Where.
    """
    return [
        Case("a compiled model", partial(of_model, bench)),
        Case("a compiled model that Lightning fits", partial(of_fit, bench)),
        Case("a compiled step", partial(of_step, bench)),
        Case("a compiled step of torch's AdamW, to tell whose fault it is", partial(of_torch, bench)),
    ]


def _compile(bench: Bench, what: Any) -> Any:
    return torch.compile(what, backend="eager" if bench.toy else "inductor")


def of_model(bench: Bench) -> dict[str, object]:
    """Train a compiled model beside one that is not.

    Args:
        bench: Where.
    """
    torch.manual_seed(0)
    with bench.device:
        plain = llama(1, 16, 24, 2, 1, 64, 8) if bench.toy else llama(4, 256, 512, 8, 4, 1024, 128)
    twin = copy.deepcopy(plain)
    compiled = _compile(bench, twin)
    layouts = partition_model(plain)
    assert {name.removeprefix("_orig_mod."): layout for name, layout in partition_model(compiled).items()} == layouts
    vocabulary, context = (64, 8) if bench.toy else (1024, 128)
    losses: list[list[float]] = []
    for model in (plain, compiled):
        optimizer = AdamMini(model.named_parameters(), lr=3e-3, layouts=partition_model(model))
        torch.manual_seed(1)
        tokens = torch.randint(vocabulary, (8, context), device=bench.device)
        losses.append([])
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    off = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    assert losses[1][-1] < losses[1][0], f"the loss does not fall: {losses[1]}"
    assert off < 1e-2, f"losses differ by {off:.2e}: {losses}"
    return {"largest_difference_of_losses": off, "first_loss": losses[1][0], "last_loss": losses[1][-1]}


def of_fit(bench: Bench) -> dict[str, object]:
    """Fit a compiled module, with the callback.

    Args:
        bench: Where.
    """
    module = sequences(bench)
    fit(bench, _compile(bench, module), epochs=1 if bench.toy else 2)
    first, last = sum(module.losses[:5]) / 5, sum(module.losses[-5:]) / 5
    assert last < first, f"the loss does not fall: {first} to {last}"
    return {"first_loss": first, "last_loss": last}


def of_step(bench: Bench) -> dict[str, object]:
    """Compile the step itself.

    Args:
        bench: Where.
    """
    plain = FEW.make(bench.device)
    twin = copy.deepcopy(plain)
    optimizers = [AdamMini(model.named_parameters(), lr=1e-3, layouts=partition_model(plain)) for model in (plain, twin)]
    compiled = _compile(bench, optimizers[1].step)
    for step in range(3):
        for model in (plain, twin):
            add_random_gradients(model, step)
        optimizers[0].step()
        compiled()
    off = max(((p - q).abs().max() / q.abs().max()).item() for p, q in zip(twin.parameters(), plain.parameters(), strict=True))
    assert off < 1e-4, f"weights differ by {off:.2e} of the largest"
    return {"largest_difference": off}


def of_torch(bench: Bench) -> dict[str, object]:
    """Compile a step of torch's own AdamW.

    Args:
        bench: Where.
    """
    model = FEW.make(bench.device)
    step = _compile(bench, torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True).step)
    for i in range(3):
        add_random_gradients(model, i)
        step()
    return {"steps": 3}
