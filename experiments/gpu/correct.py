"""Whether the kernels do what they should: each step beside one of the readable arithmetic, and the same bits each time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.gpu.case import Bench, Case
from experiments.gpu.tensors import Pieces, coded, elements, every_layout, large, lengths, matrices, small
from lightning_adam_mini import AdamMini
from lightning_adam_mini.optim import backends
from lightning_adam_mini.optim.backends.readable import Readable
from lightning_adam_mini.optim.backends.slices import Slices
from lightning_adam_mini.optim.backends.triton import backend as triton_backend
from lightning_adam_mini.optim.backends.triton.backend import Triton

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
PAIRS: list[tuple[torch.dtype, Any]] = [
    (F32, None), (BF16, None), (F32, BF16), (BF16, F32), (F16, None), (F16, F32), (F64, None)
]  # fmt: skip
STEPS, TOY_STEPS = 5, 2
OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "decay in the gradient, maximized": {"decoupled_weight_decay": False, "maximize": True},
    "no decay, betas 0 and 0.999": {"weight_decay": 0.0, "betas": (0.0, 0.999)},
    "eps of 0.1": {"eps": 0.1},
}


def cases(bench: Bench) -> list[Case]:
    """Return the cases: what matters most first.

    Args:
        bench: Where.
    """
    trusted = triton_backend.disagreement
    # Whatever the check of the package says, which is a case of its own: it would only hide which kernel is wrong.
    triton_backend.disagreement = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    if bench.toy:
        backends.BACKENDS[:] = [partial(Triton, "cpu"), Slices, Readable]  # in Triton's interpreter
    pairs = PAIRS[:3] if bench.toy else PAIRS
    here, found = partial(beside, bench.device, steps=TOY_STEPS if bench.toy else STEPS), []
    for name, cut in (("", False), (", blocks that ranks share", True)):
        for dtype, momentum in pairs[:1] if bench.toy else PAIRS:
            checked = partial(own_check, trusted, bench.device, dtype, momentum or dtype, cut)
            found.append(Case(f"the package's own check, {_title(dtype, momentum)}{name}", checked))
    layouts = every_layout()
    if bench.toy:
        layouts = {name: layouts[name] for name in list(layouts)[::4]}
    # The first case: processes that compile at once are forked before this one uses the device.
    sets = [matrices([(3, 3)], ["rows"])] if bench.toy else [layouts, {**small(True, 0), **lengths(False)}]
    found.insert(0, Case("the kernels, compiled", partial(compiled, bench, sets, pairs)))
    few = {name: layouts[name] for name in list(layouts)[:: 8 if bench.toy else 1]}  # the interpreter takes seconds
    for number, (dtype, momentum) in enumerate(pairs):
        found.append(Case(f"every layout, {_title(dtype, momentum)}", partial(here, few if number else layouts, dtype, momentum)))
    repeat, times = partial(again, bench.device), 2 if bench.toy else 200
    narrow = small(bench.toy, 0)
    for number, (dtype, momentum) in enumerate(pairs[:1] if bench.toy else PAIRS[:4]):
        title = f"1 to 70 rows of 1 to 70, {_title(dtype, momentum)}"
        found.append(Case(title, partial(here, narrow, dtype, momentum)))
        if number < 2:
            found.append(Case(f"{title}, {times} times", partial(repeat, narrow, dtype, momentum, times)))
    found.append(Case(f"every layout, {times} times", partial(repeat, few, F32, None, times)))
    codes = coded(bench.toy)
    for dtype in (F32, BF16):
        found.append(Case(f"codes, {_title(dtype, '8bit')}", partial(here, codes, dtype, "8bit")))
    found.append(Case("rounded at random, bfloat16", partial(here, codes, BF16, None, stochastic_rounding=True)))
    for title, options in list(VARIANTS.items())[: 1 if bench.toy else None]:
        found.append(Case(f"every layout, {title}", partial(here, few, F32, None, **options)))
    for dtype, momentum in pairs[:1] if bench.toy else PAIRS[:3]:
        found.append(Case(f"rows of 4 to 8,193, {_title(dtype, momentum)}", partial(here, lengths(bench.toy), dtype, momentum)))
    if not bench.toy:
        for dtype, momentum in PAIRS[:3]:
            found.append(Case(f"large, {_title(dtype, momentum)}", partial(here, large(), dtype, momentum, steps=2)))
        found.append(Case(f"rows of 4 to 8,193, {times // 4} times", partial(repeat, lengths(False), F32, None, times // 4)))
        found.append(Case("large, 20 times", partial(repeat, large(), F32, None, 20)))
        found.append(Case("large codes", partial(here, large(), F32, "8bit", steps=2)))
    return found


def compiled(bench: Bench, sets: Sequence[Pieces], pairs: Sequence[tuple[torch.dtype, Any]]) -> dict[str, object]:
    """Have the kernels compiled in many processes at once; Triton keeps them on disk. What fails here fails again where it is told.

    Args:
        bench: Where.
        sets: Tensors, each set for a process.
        pairs: Dtypes, each pair for a process.
    """
    end = time.monotonic() + bench.left() / 2
    waiting = set()
    for pieces in sets:
        for dtype, momentum in pairs:
            process = os.fork()
            if not process:
                with contextlib.suppress(BaseException):
                    beside(bench.device, pieces, dtype, momentum, steps=1)
                os._exit(0)
            waiting.add(process)
    count = len(waiting)
    while waiting and time.monotonic() < end:
        waiting -= {process for process in waiting if os.waitpid(process, os.WNOHANG)[0]}
        time.sleep(0.05)
    for process in waiting:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return {"processes": count, "ended_in_time": count - len(waiting)}


def _title(dtype: torch.dtype, momentum: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if momentum is None else f"{name} with {str(momentum).removeprefix('torch.')} momentum"


def own_check(trusted: Callable[..., str | None], *args: Any) -> dict[str, object]:
    """Return nothing where the package trusts its kernels; fail where it does not.

    Args:
        trusted: The package's check.
        args: Its arguments.
    """
    problem = trusted(*args)
    assert problem is None, problem
    return {"agrees": True}


def _parameters(device: torch.device, pieces: Pieces, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(piece.layout.shape, generator=generator) for name, piece in pieces.items()}
    return {name: nn.Parameter(piece.in_memory(values[name].to(device, dtype))) for name, piece in pieces.items()}


def _gradients(pieces: Pieces, dtype: torch.dtype, step: int) -> dict[str, Tensor]:
    """Gradients whose rows and columns differ in size, so that a block in the place of another is seen; on the CPU."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = {}
    for name, piece in pieces.items():
        grad = torch.randn(piece.layout.shape, generator=generator)
        for d, size in enumerate(grad.shape):
            scale = 10 ** (torch.rand(size, generator=generator) - 0.5)
            grad *= scale.view([-1 if i == d else 1 for i in range(grad.ndim)])
        found[name] = grad.to(dtype)
    return found


def _optimizer(params: Mapping[str, Tensor], pieces: Pieces, momentum: Any, **options: Any) -> AdamMini:
    layouts = {name: piece.layout for name, piece in pieces.items()}
    return AdamMini(params.items(), layouts=layouts, momentum_dtype=momentum, **{**OPTIONS, **options})  # pyright: ignore[reportArgumentType]


def _took(optimizer: AdamMini) -> str:
    return ", ".join(type(optimizer._stepper._backends[i]).__name__ for i in optimizer._stepper._took)


@torch.no_grad()
def beside(
    device: torch.device, pieces: Pieces, dtype: torch.dtype, momentum: Any, steps: int = STEPS, **options: Any
) -> dict[str, object]:
    """Take steps, each beside one of the readable arithmetic on the CPU from where the optimizer was.

    Args:
        device: Where.
        pieces: The tensors.
        dtype: Of the weights.
        momentum: Of the first moments.
        steps: How many.
        options: Of the optimizer.

    Returns:
        The largest difference of each kind of tensor, as a part of what is allowed.
    """
    params = _parameters(device, pieces, dtype)
    twins = {name: nn.Parameter(p.detach().cpu().clone()) for name, p in params.items()}
    optimizer = _optimizer(params, pieces, momentum, **options)
    reference = _optimizer(twins, pieces, momentum, **options, fused=False, foreach=False)
    worst: dict[str, float] = {}
    wrong: dict[str, str] = {}
    same = total = 0
    for step in range(steps):
        grads = _gradients(pieces, dtype, step)
        before = {name: p.detach().clone() for name, p in params.items()}
        for name, p in params.items():
            q = twins[name]
            q.copy_(p)
            for key, value in optimizer.state[p].items():
                reference.state[q][key].copy_(value)
            # Every other step in another order of memory than the parameter.
            p.grad = pieces[name].in_memory(grads[name].to(device)) if step % 2 == 0 else grads[name].to(device)
            q.grad = grads[name]
        optimizer.step()
        reference.step()
        for name, p in params.items():
            q, ours = twins[name].detach().to(device), optimizer.state[p]
            theirs = {key: value.to(device) for key, value in reference.state[twins[name]].items()}
            assert float(ours["step"]) == step + 1, f"{name} counts {float(ours['step'])} steps and not {step + 1}"
            assert ours.keys() == theirs.keys(), f"{name} keeps {[*ours]} and not {[*theirs]}"
            for key, here, there, bound in _compared(p, q, before[name], ours, theirs, reference.param_groups[0]):
                off = ((here.double() - there.double()).abs() / bound).nan_to_num(nan=float("inf")).max().item() if here.numel() else 0
                worst[key] = max(worst.get(key, 0.0), off)
                if off > 1 and len(wrong) < 8:
                    wrong.setdefault(f"{key} of {name} {tuple(p.shape)}", f"{off:.3g} times what is allowed in step {step + 1}")
            same += int((p.detach() == q).sum())
            total += p.numel()
    by = _took(optimizer)
    assert not wrong, f"stepped by {by}: " + "; ".join(f"{what}: {how}" for what, how in wrong.items())
    return {"tensors": len(pieces), "elements": elements(pieces), "steps": steps, "by": by, "equal": same / total, **worst}


def _compared(
    p: Tensor, q: Tensor, before: Tensor, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], options: Mapping[str, Any]
) -> list[tuple[str, Tensor, Tensor, Tensor | float]]:
    """What is compared of a parameter, and how much each number may be off."""
    eps = torch.finfo(q.dtype).eps
    kept = theirs["exp_avg"].dtype
    # Sums in another order: relative to what is summed. Codes may round to the next one.
    sums = 1e-10 if q.dtype == F64 else 3e-5
    in_gradient = 8 * eps if not options["decoupled_weight_decay"] and q.dtype.itemsize == 2 else 0.0
    in_moment = 4 * torch.finfo(kept).eps if kept.is_floating_point else 1e-6
    assert p.grad is not None
    moved = (q.double() - before.double()).abs()
    decayed = options["lr"] * options["weight_decay"] * before.double().abs()
    size = q.double().abs() + before.double().abs()
    # The two terms of a moment may cancel: then its rounding is not small beside itself, but beside them, and so beside a step.
    cancelled = (1e-9 if q.dtype == F64 else 1e-6) * options["lr"]
    of_weights = 4 * eps * (size + moved) + (sums + in_moment + in_gradient) * (moved + decayed) + cancelled + 1e-7 * (q.dtype == F16)
    found: list[tuple[str, Tensor, Tensor, Tensor | float]] = [("weights", p.detach(), q, of_weights)]
    # What decay is added to may cancel: then nothing is small beside what it was made of.
    made_of = 0.0 if options["decoupled_weight_decay"] else (p.grad.double().abs() + decayed / options["lr"]).square().max().item()
    for name in ("exp_avg_sq", "exp_avg_sq_col"):
        if name in theirs:
            allowed = (sums + 2 * in_gradient) * theirs[name].double().abs() + 1e-6 * made_of + 1e-30
            found.append((name, ours[name], theirs[name], allowed))
    if kept == torch.int8:
        scale = theirs["exp_avg_scale"]
        terms = 1e-6 * p.grad.double().abs().max().item()  # a run may be one element, whose terms cancel
        found.append(("exp_avg_scale", ours["exp_avg_scale"], scale, 1e-5 * scale.double() + terms))
        found.append(("codes", ours["exp_avg"], theirs["exp_avg"], 1.0))
    else:
        size = (
            theirs["exp_avg"].double().abs() + p.grad.double().abs() + options["weight_decay"] * before.double().abs() * (in_gradient > 0)
        )
        found.append(("exp_avg", ours["exp_avg"], theirs["exp_avg"], (in_moment + in_gradient) * size + 1e-7 * (kept == F16) + 1e-30))
    return found


@torch.no_grad()
def again(device: torch.device, pieces: Pieces, dtype: torch.dtype, momentum: Any, times: int) -> dict[str, object]:
    """Take the same two steps many times: a race in a kernel shows only sometimes.

    Args:
        device: Where.
        pieces: The tensors.
        dtype: Of the weights.
        momentum: Of the first moments.
        times: How often.
    """
    params = _parameters(device, pieces, dtype)
    optimizer = _optimizer(params, pieces, momentum)
    steps = [{name: pieces[name].in_memory(g.to(device)) for name, g in _gradients(pieces, dtype, step).items()} for step in range(2)]
    weights = [p.detach() for p in params.values()]
    start = [p.clone() for p in weights]

    def run() -> dict[str, Tensor]:
        torch._foreach_copy_(weights, start)
        kept = [value for p in params.values() for value in optimizer.state[p].values()]
        if kept:
            torch._foreach_zero_(kept)
        for grads in steps:
            for name, p in params.items():
                p.grad = grads[name]
            optimizer.step()
        return {f"{key} of {name}": t for name, p in params.items() for key, t in [("weights", p.detach()), *optimizer.state[p].items()]}

    first = {name: t.clone() for name, t in run().items()}
    differ = torch.zeros(len(first), dtype=torch.int64, device=device)
    names = sorted(first, key=lambda name: (str(first[name].dtype), str(first[name].device)))
    for _ in range(times - 1):
        tensors = run()
        away = torch._foreach_sub([tensors[name] for name in names], [first[name] for name in names])
        differ += torch.stack([size.to(device, F32) for size in torch._foreach_norm(away, float("inf"))]) != 0  # of NaN too
    bad = {name: int(number) for name, number in zip(names, differ.tolist(), strict=True) if number}
    some = "; ".join(f"{name}: {number} times" for name, number in list(bad.items())[:8])
    assert not bad, f"stepped by {_took(optimizer)}: {len(bad)} of {len(first)} tensors differ from the first time: {some}"
    return {"tensors": len(pieces), "elements": elements(pieces), "times": times, "by": _took(optimizer), "equal": 1.0}
