"""Sophia over block means of the Hessian (Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer", arXiv 2305.14342)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from typing_extensions import override

from lightning_adam_mini.combine.part import Part, Place, check_globs, check_number, check_whole, matched
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.codecs import Plain, codec_of
from lightning_adam_mini.optim.state import FIRST, STEP, Kind, elements_in, slots_of, values_of

if TYPE_CHECKING:
    from lightning_adam_mini.detection import ModelReport

Estimate = Literal["hutchinson", "gauss_newton_bartlett"]
_COUNT, _MADE = "sophia_steps", "hessian_at"


@dataclass(frozen=True)
class Sophia(Part):
    r"""Keeps block means of estimates of the Hessian's diagonal in the place of g², and clips each element of the update.

        h_b = beta2 h_b + (1 - beta2) mean(estimate over b)       each ``every`` steps
        m = beta1 m + (1 - beta1) g
        p = (1 - lr weight_decay) p - lr clip(m / max(gamma h_b, eps), 1)

    The estimate is Hutchinson's, ``u * (H u)`` with u of ±1, or Gauss, Newton and Bartlett's, ``B g²`` of a loss on labels that are drawn
    from the model's own output. An AdamMiniCallback makes it: Hutchinson's by running ``training_step`` once more, the other's by the
    module's ``sampled_loss(batch, batch_idx)``, which returns the loss and the number B of examples. In a loop of your own call
    ``optimizer.update_hessian(loss)`` where ``optimizer.estimate_is_due``. The state is as large as AdamMini's. The authors take betas of
    (.965, .99), and a learning rate a little below AdamW's.

    Args:
        estimate: ``hutchinson`` or ``gauss_newton_bartlett``.
        every: Steps between two estimates.
        gamma: How far updates are from being clipped: .01 with Hutchinson's in the paper, .05 with the other.
        eps: Least denominator.
        only: Globs over names of the parameters. [default: all; others are stepped as ever]
        seed: Seed of u and, in the callback, of the labels, which follow from it and the step.

    Example:
        >>> Sophia(estimate="gauss_newton_bartlett", gamma=0.05).every
        10
    """

    name: ClassVar[str] = "sophia"
    estimate: Estimate = "hutchinson"
    every: int = 10
    gamma: float = 0.01
    eps: float = 1e-12
    only: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimate not in get_args(Estimate):
            raise ValueError(f"Sophia has no estimate={self.estimate!r}. Give one of {', '.join(get_args(Estimate))}.")
        check_whole(self, "every", 1)
        check_number(self, "gamma", 0, float("inf"))
        check_number(self, "eps", 0, float("inf"))
        check_globs(self, self.only)
        check_whole(self, "seed", 0)
        object.__setattr__(self, "only", None if self.only is None else tuple(self.only))

    @override
    def choose(self, shapes: Mapping[str, tuple[int, ...]], report: ModelReport | None) -> Collection[str]:
        return shapes if self.only is None else matched(self, self.only, shapes)

    @override
    def begin_group(self, group: dict[str, Any]) -> None:
        if self.is_due(group):
            made = "update_hessian(loss)" if self.estimate == "hutchinson" else "update_hessian(loss on drawn labels, examples=B)"
            raise RuntimeError(
                f"Sophia's estimate of the Hessian is due before this step, each {self.every} steps. Call optimizer.{made} before"
                " optimizer.step(); AdamMiniCallback does."
            )
        group[_COUNT] = group.get(_COUNT, 0) + 1

    def is_due(self, group: Mapping[str, Any]) -> bool:
        """Whether a group's next step wants an estimate that was not made."""
        count = group.get(_COUNT, 0)
        return count % self.every == 0 and group.get(_MADE) != count and self.only != ()

    @override
    def step(self, places: Sequence[Place], take: Callable[[], None]) -> None:
        for p, group, layout, _, state in places:
            grad, lr, decay = p.grad, float(group["lr"]), group["weight_decay"]
            assert grad is not None
            if group["maximize"]:
                grad = grad.neg()
            if decay and group["decoupled_weight_decay"]:
                p.mul_(1 - lr * decay)
            elif decay:
                grad = grad.add(p, alpha=decay)
            state[STEP.name] += 1
            blocks = [state[slot.name].clamp(min=0) for slot in slots_of(Kind.BLOCK, layout)]
            denom = layout.combine(blocks).mul(self.gamma).clamp_(min=self.eps)
            kept = elements_in(state, FIRST)
            codec = codec_of(kept)
            momentum = values_of(kept, codec)
            momentum = momentum if momentum.dtype == grad.dtype else momentum.to(denom.dtype)
            momentum.lerp_(grad.to(momentum.dtype), 1 - float(group["betas"][0]))
            if not isinstance(codec, Plain) or momentum is not kept[""]:
                codec.encode_(momentum, kept)
            p.sub_((momentum / denom).clamp_(-1, 1).to(p.dtype), alpha=lr)
        take()

    def update(self, places: Sequence[Place], loss: Tensor, examples: int | None, ranks: ProcessGroup | None) -> None:
        """Take an estimate into what is kept per block.

        Args:
            places: The parameters that it is for.
            loss: A scalar with its graph.
            examples: How many examples it is the mean of.
            ranks: Ranks whose estimates are averaged; None for this one's alone.

        Raises:
            ValueError: If it is no scalar with a graph, or the number of examples is missing.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"Sophia differentiates a loss of one element with its graph, but got {loss!r}. Pass it before backward frees it."
            )
        if self.estimate == "gauss_newton_bartlett" and (not isinstance(examples, int) or examples < 1):
            raise ValueError(f"Sophia(estimate='gauss_newton_bartlett') needs how many examples the loss is the mean of, not {examples!r}.")
        params = [place.p for place in places]
        with torch.enable_grad():
            first = self.estimate == "hutchinson"
            grads = torch.autograd.grad(loss, params, create_graph=first, allow_unused=True)
        means = self._hutchinson(places, grads) if first else self._bartlett(places, grads, examples or 1)
        flat = torch.cat([mean.reshape(-1).double() for some in means for mean in some])
        if ranks is not None:
            torch.distributed.all_reduce(flat, group=ranks)
            flat /= torch.distributed.get_world_size(ranks)
        rest = iter(flat.split([mean.numel() for some in means for mean in some]))
        for place in places:
            for slot in slots_of(Kind.BLOCK, place.layout):
                kept = place.state[slot.name]
                kept.lerp_(next(rest).view(kept.shape).to(kept.dtype), 1 - float(place.group["betas"][1]))

    def _hutchinson(self, places: Sequence[Place], grads: Sequence[Tensor | None]) -> list[tuple[Tensor, ...]]:
        known = [i for i, grad in enumerate(grads) if grad is not None and grad.requires_grad]
        signs = [self._signs(places[i], i) for i in known]
        products: Sequence[Tensor | None] = ()
        if known:
            first, params = [grads[i] for i in known], [places[i].p for i in known]
            try:
                with torch.enable_grad():
                    products = torch.autograd.grad(first, params, signs, allow_unused=True)  # type: ignore[arg-type]
            except RuntimeError as error:
                if "not implemented" not in str(error):
                    raise
                raise RuntimeError(
                    f"Sophia's Hutchinson estimate differentiates the loss twice, which an operator of it does not do: {error}. Compute the"
                    " loss under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or take estimate='gauss_newton_bartlett'."
                ) from error
        of = {i: (u, hu) for i, u, hu in zip(known, signs, products, strict=True) if hu is not None}
        return [place.layout.averages(of[i][0] * of[i][1]) if i in of else _zeros(place.layout, place.p) for i, place in enumerate(places)]

    def _signs(self, place: Place, number: int) -> Tensor:
        """The signs u: the same on all ranks, and in a run that is resumed."""
        generator = torch.Generator(place.p.device).manual_seed(self._seed_of(place.group, number))
        return torch.randint(0, 2, place.p.shape, generator=generator, device=place.p.device).to(place.p.dtype).mul_(2).sub_(1)

    def _seed_of(self, group: Mapping[str, Any], number: int) -> int:
        return (self.seed + 1_000_003 * group.get(_COUNT, 0) + 7919 * number) % 2**63

    def seed_labels(self, groups: Sequence[Mapping[str, Any]], device: torch.device, rank: int) -> None:
        """Seed torch's generators for the labels of an estimate: others at each step and on each rank, and the same in a resumed run.

        Args:
            groups: The optimizer's groups.
            device: Where they are drawn; of other devices nothing is seeded.
            rank: This process's rank.
        """
        due = next(group for group in groups if self.is_due(group))
        torch.default_generator.manual_seed(self._seed_of(due, rank))
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(self._seed_of(due, rank))

    @staticmethod
    def _bartlett(places: Sequence[Place], grads: Sequence[Tensor | None], examples: int) -> list[tuple[Tensor, ...]]:
        return [
            _zeros(place.layout, place.p) if grad is None else tuple(mean * examples for mean in place.layout.mean_squares(grad))
            for place, grad in zip(places, grads, strict=True)
        ]

    def mark(self, group: dict[str, Any]) -> None:
        """Remember that the estimate for a group's next step was made."""
        group[_MADE] = group.get(_COUNT, 0)

    @override
    def rate(self, group: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
        return lambda blocks: group["lr"] / blocks.mul(self.gamma).clamp_(min=self.eps)


def _zeros(layout: BlockLayout, p: Tensor) -> tuple[Tensor, ...]:
    return tuple(p.new_zeros(margin.block_shape) for margin in layout.margins)
