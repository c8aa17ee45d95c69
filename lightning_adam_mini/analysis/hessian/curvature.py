"""A loss that is differentiated twice: the gradient's graph, and products of the Hessian with vectors.

The loss is evaluated once. Its gradient is kept with its graph (forward, then backward with ``create_graph=True``), and each product
is one more backward through that. So all products see one forward pass: one mask of dropout, one batch's statistics. Any loss will do that
autograd can differentiate twice, a ``training_step`` too; what libraries for curvature ask for (a model, a loss function and data apart,
or functional modules) is not needed.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.detection.names import parameter_names
from lightning_adam_mini.table import count

Loss = Callable[[nn.Module], Tensor]
"""What is differentiated: a function of the module that gives one number."""

_SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")


class Curvature:
    """The second derivatives of a loss, as products with vectors. Made by :func:`differentiate_twice`.

    Attributes:
        parameters: The parameters that are differentiated by, by name.
        gradients: Their gradients, detached, by name.
        left_out: Why another parameter is none of them, by name: frozen, quantised, of a sparse gradient, or not used by the loss.
        notes: What the user should know about how the loss was evaluated.
        loss: Its value.
    """

    def __init__(self, loss: Tensor, parameters: Mapping[str, Tensor], left_out: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        tensors = list(parameters.values())
        with _told():
            found = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
        _check_graph([gradient for gradient in found if gradient is not None])
        every = dict(zip(parameters, found, strict=True))
        self._graph = {name: gradient for name, gradient in every.items() if gradient is not None and gradient.layout == torch.strided}
        others = {name: gradient for name, gradient in every.items() if name not in self._graph}
        whys = {
            name: "not used by the loss" if gradient is None else "of a sparse gradient (sparse=True)" for name, gradient in others.items()
        }
        self.left_out: dict[str, str] = {**left_out, **whys}
        self.parameters: dict[str, Tensor] = {name: parameters[name] for name in self._graph}
        self.gradients: dict[str, Tensor] = {name: gradient.detach() for name, gradient in self._graph.items()}
        self.notes: list[str] = list(notes)
        self.loss: float = loss.item()
        self._batched = True

    def size(self, names: Sequence[str]) -> int:
        """Number of elements of the parameters."""
        return sum(self.parameters[name].numel() for name in names)

    def products(self, vectors: Tensor, names: Sequence[str]) -> Tensor:
        """The principal block of the Hessian of some parameters, times each of several vectors.

        Args:
            vectors: Tensor of shape (k, n), n the number of elements of the parameters, in the order of ``names``.
            names: The parameters.

        Returns:
            Tensor of shape (k, n), of the parameters' dtype. Cost: k backward passes through the gradient's graph, batched where torch can.

        Raises:
            ValueError: If an operation of the loss has no second derivative; says which and what to do.
        """
        parameters = [self.parameters[name] for name in names]
        parts = vectors.split([p.numel() for p in parameters], dim=1)
        curved = [i for i, name in enumerate(names) if self._graph[name].requires_grad]  # a loss may be linear in a parameter
        if not curved:
            return torch.zeros_like(vectors)
        outputs = [self._graph[names[i]] for i in curved]
        seeds = [parts[i].reshape(-1, *outputs[j].shape).to(outputs[j].dtype) for j, i in enumerate(curved)]
        with _told():
            found = self._differentiate(outputs, parameters, seeds)
        zeros = [p.new_zeros(len(vectors), *p.shape) for p in parameters]
        return torch.cat([(z if f is None else f).flatten(1) for f, z in zip(found, zeros, strict=True)], dim=1)

    def _differentiate(self, outputs: list[Tensor], inputs: list[Tensor], seeds: list[Tensor]) -> Sequence[Tensor | None]:
        options: dict[str, Any] = dict(retain_graph=True, allow_unused=True)
        if self._batched and len(seeds[0]) > 1:
            try:
                return torch.autograd.grad(outputs, inputs, seeds, is_grads_batched=True, **options)
            except RuntimeError as error:
                if _undifferentiable(error):
                    raise
                self._batched = False  # an operation that vmap does not know: one vector at a time
        one_by_one = [torch.autograd.grad(outputs, inputs, list(seed), **options) for seed in zip(*seeds, strict=True)]
        return [None if found[0] is None else torch.stack(found) for found in zip(*one_by_one, strict=True)]

    def columns(self, name: str, indices: Tensor, chunk: int = 16) -> Tensor:
        r"""Exact columns of the Hessian of one parameter.

        Args:
            name: The parameter.
            indices: Its elements whose columns are wanted, as flat indices of shape (k,).
            chunk: Columns at a time: memory of the graph's tensors grows with it.

        Returns:
            Tensor of shape (k, \\*shape): the second derivatives by each element and by all others.
        """
        p = self.parameters[name]
        found = []
        for some in indices.split(chunk):
            basis = p.new_zeros(len(some), p.numel())
            basis[torch.arange(len(some)), some] = 1
            found.append(self.products(basis, [name]))
        return torch.cat(found).reshape(len(indices), *p.shape) if found else p.new_zeros(0, *p.shape)


@contextmanager
def differentiate_twice(
    module: nn.Module, loss: Loss, names: Sequence[str] | None = None, *, dtype: torch.dtype | None = None, seed: int = 0
) -> Iterator[Curvature]:
    """Evaluate a loss so that it can be differentiated twice.

    Nothing of the module changes: neither gradients nor buffers (statistics of a BatchNorm) nor the random state. Within it attention is
    computed by torch's plain operations, recurrent layers without cuDNN and compiled modules eagerly, because the fused ones have no second
    derivatives.

    Args:
        module: The module, on any device, in train or eval mode as it is to be looked at.
        loss: Called with the module (with a copy of it if ``dtype`` is given).
        names: Parameters to differentiate by, as in ``named_parameters()``. [default: all that can be]
        dtype: What to compute in, such as ``torch.float64``: parameters, buffers and what the module is called with are cast.
            [default: as the module is]
        seed: Of the random numbers that the loss draws (dropout, noise).

    Raises:
        ValueError: If a parameter is unknown, frozen or quantised, none is left, the module is sharded, or the loss is no single finite
            number with a gradient.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with differentiate_twice(layer, lambda m: m(torch.tensor([[1.0, 3.0]])).square().sum()) as curvature:
        ...     curvature.products(torch.eye(2), ["weight"]).tolist()
        [[2.0, 6.0], [6.0, 18.0]]
    """
    check_whole(module)
    if dtype is not None:
        module = copy.deepcopy(module).to(dtype)
    parameters, left_out = choose_parameters(module, names)
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(parameters)))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(_eager())
        if dtype is not None:
            for part in module.modules():
                handle = part.register_forward_pre_hook(lambda _, args, kwargs: _cast((args, kwargs), dtype), with_kwargs=True)
                stack.callback(handle.remove)
        stack.callback(_restore, buffers)
        torch.manual_seed(seed)
        before = _random_states(parameters)
        with _told():
            value = loss(module)
        drew = any(not torch.equal(a, b) for a, b in zip(before, _random_states(parameters), strict=True))
        yield Curvature(check_loss(value), parameters, left_out, mode_notes(module, seed if drew else None))


def choose_parameters(module: nn.Module, names: Sequence[str] | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The parameters to differentiate by, and why others are left out.

    Raises:
        ValueError: If one of ``names`` is unknown or cannot be differentiated by, or nothing is left.
    """
    every = {name: p for p, name in parameter_names(module).items()}
    left_out = {name: why for name, p in every.items() if (why := _why_not(p))}
    for name in names or ():
        if name not in every:
            raise ValueError(f"There is no parameter {name!r}. The first are: {', '.join([*every][:5])}.")
        if name in left_out:
            raise ValueError(
                f"Parameter {name!r} of shape {tuple(every[name].shape)} has no second derivatives, because it is {left_out[name]}. Leave"
                " it out, or unfreeze it (requires_grad_())."
            )
    chosen = {name: p for name, p in every.items() if name not in left_out and (names is None or name in names)}
    if names is not None:
        chosen = {name: chosen[name] for name in names}
    if not chosen:
        raise ValueError("No parameter can be differentiated by: all are frozen or quantised. Unfreeze one (requires_grad_()).")
    return chosen, left_out


def _why_not(p: Tensor) -> str | None:
    if not p.is_floating_point():
        return f"quantised or of whole numbers ({p.dtype})"
    return None if p.requires_grad else "frozen"


def check_whole(module: nn.Module) -> None:
    """Refuse a module whose parameters are not all here.

    Raises:
        ValueError: If it is sharded, or on the meta device; names the parameter and the remedy.
    """
    for part in module.modules():
        if type(part).__name__ in _SHARDED:
            raise ValueError(f"The module is sharded by {type(part).__name__}, so no rank has a whole Hessian. {_REMEDY}")
    for name, p in module.named_parameters():
        if hasattr(p, "placements") or hasattr(p, "ds_id"):
            raise ValueError(f"Parameter {name!r} is sharded ({type(p).__name__}), so no rank has a whole Hessian. {_REMEDY}")
        if p.is_meta:
            raise ValueError(f"Parameter {name!r} is on the meta device and has no values. Build the module on the CPU or a GPU.")


_REMEDY = "Look at the module on one device before it is sharded, or at a smaller one of the same kind."


def check_loss(value: Any) -> Tensor:
    """The loss, if it can be differentiated.

    Raises:
        ValueError: If it is no tensor of one finite element with a gradient.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"The loss is {type(value).__name__}, not a tensor. Return the loss itself from the function.")
    if value.numel() != 1:
        raise ValueError(f"The loss has shape {tuple(value.shape)}, but a Hessian is that of one number. Return its mean or sum.")
    if not value.requires_grad:
        raise ValueError(
            "The loss has no gradient: it does not depend on a parameter, or was detached or computed under torch.no_grad(). Return it as"
            " training computes it."
        )
    if not value.isfinite().item():
        raise ValueError(f"The loss is {value.item()}, so its derivatives say nothing. Look at the batch and the weights.")
    return value.reshape(())


def mode_notes(module: nn.Module, seed: int | None) -> list[str]:
    """What to tell about random numbers, and about layers that behave otherwise in training than in evaluation.

    Args:
        module: The module that was called.
        seed: Of the random numbers that the loss drew; None if it drew none.
    """
    notes = []
    if seed is not None:
        notes.append(f"The loss draws random numbers (dropout, noise): those of seed {seed}, once for all second derivatives.")
    off = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 and not m.training]
    if off:
        notes.append(f"{count(len(off), 'dropout layer')} off (eval mode): the Hessian in training is another. Call train() to see that.")
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training]
    if norms:
        notes.append(f"{count(len(norms), 'batch norm')} with running statistics (eval mode): the Hessian in training is another.")
    return notes


@contextmanager
def _told() -> Iterator[None]:
    """Autograd's error about a missing second derivative, as one that says what to do."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Using backward\\(\\) with create_graph=True.*")
            yield
    except RuntimeError as error:
        if not (what := _undifferentiable(error)):
            raise
        raise _not_twice(what) from error


def _check_graph(gradients: Sequence[Tensor]) -> None:
    """Refuse a gradient that a function marked once_differentiable is part of: autograd would take its derivative for 0.

    That function's node in the graph raises if it is reached, but has no way on to the parameters, for which it is skipped.
    """
    waiting = [gradient.grad_fn for gradient in gradients]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rpartition("::")[2] == "Error":
            raise _not_twice("a custom autograd.Function is marked once_differentiable")
        waiting.extend(following for following, _ in node.next_functions)


def _not_twice(what: str) -> ValueError:
    return ValueError(
        f"The loss cannot be differentiated twice, because {what}. Attention by scaled_dot_product_attention and layers of torch.nn can be,"
        " within this call; replace a fused kernel or a custom autograd.Function (flash attention, fused norms, reentrant checkpointing) by"
        " plain operations for it."
    )


def _undifferentiable(error: RuntimeError) -> str | None:
    text = " ".join(str(error).split())
    found = re.search(r"derivative for '?([\w:]+)'? is not implemented|the derivative for '?([\w:]+)'? is not implemented", text)
    if found:
        return f"{found[1] or found[2]} has no second derivative"
    for sign, what in (
        ("once_differentiable", "a custom autograd.Function is marked once_differentiable"),
        ("double backward", "a compiled or fused function does not support it"),
        ("Checkpointing is not compatible", "reentrant checkpointing does not support it"),
        ("element 0 of tensors does not require grad", "its gradient does not depend on the parameters"),
    ):
        if sign in text:
            return what
    return None


@contextmanager
def _eager() -> Iterator[None]:
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        yield
        return
    with stance("force_eager"):
        yield


def _cast(tensors: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tensors)


def _cuda_devices(parameters: Mapping[str, Tensor]) -> list[int]:
    return sorted({p.device.index for p in parameters.values() if p.device.type == "cuda" and p.device.index is not None})


def _random_states(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _cuda_devices(parameters))]


@torch.no_grad()
def _restore(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in buffers:
        if not torch.equal(buffer, before):
            buffer.copy_(before)


def warn_notes(notes: Sequence[str]) -> None:
    """Warn of each note, once."""
    for note in notes:
        warn(note)
