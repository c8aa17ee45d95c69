"""What goes around AdamMini's step: what feeds its second moments, and what is done with its updates.

AdamMini keeps a second moment per block. Other methods say other things of a step, and none needs another one:

- schedule-free averaging (:mod:`.schedule_free`) says where gradients are taken and which weights are evaluated;
- GaLore (:mod:`.galore`) says that what is stepped is a projection of the gradient;
- Sophia (:mod:`.sophia`) says that blocks hold means of the Hessian's diagonal, and not of g².

A :class:`Part` is one of these. It has settings and no state: what it keeps of a parameter stands in that parameter's state, beside the
slots that AdamMini keeps, and what it keeps of a group in that group. So a checkpoint holds all of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from ast import literal_eval
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import shorten
from lightning_adam_mini.optim.codecs import Field, MomentumDtype, codec_for
from lightning_adam_mini.optim.state import FIRST, block_shapes, fields_of

if TYPE_CHECKING:
    from lightning_adam_mini.combine.combined import Combined
    from lightning_adam_mini.detection import ModelReport


class Place(NamedTuple):
    """A parameter that a part is for, in one step.

    Attributes:
        p: The parameter, with its gradient.
        group: Its group's options, with what the part keeps of the group.
        layout: The blocks of what is stepped in its place.
        stand_in: What AdamMini steps in its place, if it has a gradient.
        state: The parameter's state: AdamMini's slots, of the shapes of what is stepped, and what the part adds.
    """

    p: Tensor
    group: dict[str, Any]
    layout: BlockLayout
    stand_in: nn.Parameter
    state: dict[str, Any]


@dataclass(frozen=True)
class Part(ABC):
    """One method that is combined with AdamMini. Subclasses are frozen dataclasses of settings."""

    name: ClassVar[str]
    """What it is called in YAML and in checkpoints."""
    momentum: ClassVar[bool] = True
    """Whether first moments are kept."""

    def choose(self, shapes: Mapping[str, tuple[int, ...]], report: ModelReport | None) -> Collection[str]:
        """Names of the parameters that it is for; AdamMini steps the others as ever.

        Args:
            shapes: Shape of each parameter, by name.
            report: What the model is; None if that is not known.

        Raises:
            ValueError: If none is, or that cannot be told.
        """
        return shapes

    def stands_in(self, layout: BlockLayout) -> BlockLayout:
        """The blocks of what is stepped in the place of a parameter with these blocks."""
        return layout

    def adds(self, layout: BlockLayout, dtype: torch.dtype) -> dict[str, Field]:
        """What it keeps of a parameter beside AdamMini's slots, by name.

        Args:
            layout: The parameter's own blocks.
            dtype: Its dtype.
        """
        return {}

    def fields(self, layout: BlockLayout, dtype: torch.dtype, momentum_dtype: MomentumDtype | None) -> dict[str, Field]:
        """All tensors that are kept of a parameter that it is for, by name.

        Args:
            layout: The parameter's own blocks.
            dtype: Its dtype.
            momentum_dtype: What first moments are kept in; None for the parameter's.
        """
        of = self.stands_in(layout)
        kept = fields_of(codec_for(of.shape, dtype, momentum_dtype), block_shapes(of), dtype)
        return {**{name: field for name, field in kept.items() if self.momentum or name != FIRST.name}, **self.adds(layout, dtype)}

    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The options that AdamMini steps stand-ins with, where they differ from the group's."""
        return {}

    def stand_in(self, p: Tensor, layout: BlockLayout, state: Mapping[str, Any]) -> Tensor:
        """What AdamMini steps in the place of a parameter.

        Args:
            p: The parameter.
            layout: The blocks of what is stepped.
            state: Its state, with what :meth:`begin` made.
        """
        return p.detach()

    def begin(self, p: Tensor, state: dict[str, Any]) -> None:  # noqa: B027  (most add nothing)
        """Add to the state of a parameter what is kept before its first step.

        Args:
            p: The parameter.
            state: AdamMini's slots, zero.
        """

    def begin_group(self, group: dict[str, Any]) -> None:  # noqa: B027
        """Add to a group what is kept of it."""

    @abstractmethod
    def step(self, places: Sequence[Place], take: Callable[[], None]) -> None:
        """Step parameters.

        Args:
            places: The parameters that it is for and that have gradients.
            take: Takes AdamMini's step: of stand-ins that have gradients, and of all parameters that the part is not for.
        """

    def rate(self, group: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """What makes effective learning rates of what is kept per block; None if that is as AdamMini does."""
        return None

    def train(self, combined: Combined) -> None:  # noqa: B027
        """Have the parameters hold the weights at which gradients are taken."""

    def eval(self, combined: Combined) -> None:  # noqa: B027
        """Have the parameters hold the weights that are evaluated and saved."""


def check_whole(part: Part, name: str, least: int) -> None:
    """Refuse a setting that is no whole number from ``least``."""
    value = getattr(part, name)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{type(part).__name__} has no {name}={value!r}. Give a whole number from {least}.")


def check_number(part: Part, name: str, above: float, below: float) -> None:
    """Refuse a setting that is no number between two, which it may not be."""
    value = getattr(part, name)
    if not isinstance(value, Real) or isinstance(value, bool) or not above < float(value) < below:
        wanted = f"above {above:g}" if below == float("inf") else f"between {above:g} and {below:g}"
        raise ValueError(f"{type(part).__name__} has no {name}={value!r}. Give a number {wanted}.")


def check_layout(part: Part, name: str, layout: BlockLayout) -> None:
    """Refuse blocks that no part steps.

    Raises:
        ValueError: If the parameter's updates are orthogonalised.
    """
    if layout.is_orthogonal:
        raise ValueError(
            f"{type(part).__name__} does not go with orthogonalised updates (Muon, NorMuon), which parameter {name!r} of shape"
            f" {tuple(layout.shape)} has. Choose the partition 'auto', or override it with 'factored'."
        )


def check_globs(part: Part, only: Any) -> None:
    """Refuse what are no globs."""
    if only is not None and (isinstance(only, str) or not all(isinstance(glob, str) for glob in only)):
        raise ValueError(f"{type(part).__name__} has no only={only!r}. Give a list of globs over parameter names, such as ['*.mlp.*'].")


def matched(part: Part, only: Sequence[str], names: Collection[str]) -> list[str]:
    """The names that match one of some globs.

    Raises:
        ValueError: If a glob matches none.
    """
    for glob in only:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(
                f"{type(part).__name__}(only={list(only)!r}): {glob!r} matches no parameter, such as {next(iter(names), 'none')!r}."
            )
    return [name for name in names if any(fnmatchcase(name, glob) for glob in only)]


def read_part(spec: Any) -> Part | None:
    """A part, as users write it.

    Args:
        spec: A part; its name, such as ``"schedule_free"``; its name with its settings, such as ``{"galore": {"rank": 128}}`` or
            ``"galore:rank=128"``; or None.

    Raises:
        ValueError: If there is none of this name, or a setting is not valid.

    Example:
        >>> read_part("galore:rank=128") == read_part({"galore": {"rank": 128}})
        True
    """
    from lightning_adam_mini.combine import PARTS

    if spec is None or isinstance(spec, Part):
        return spec
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, settings = next(iter(spec.items()))
        settings = {} if settings is None else settings
    else:
        name, settings = read_settings(spec) if isinstance(spec, str) else (None, {})
    if not isinstance(name, str) or name not in PARTS or not isinstance(settings, Mapping):
        if name == "badam":
            raise ValueError("BAdam is a callback of its own. Add lightning_adam_mini.BAdam to the trainer's callbacks.")
        raise ValueError(
            f"There is no combination {shorten(spec)}. Give one of {', '.join(PARTS)}, if need be with its settings:"
            " {'galore': {'rank': 128}}."
        )
    kind = PARTS[name]
    known = {field.name: field.default is MISSING for field in fields(kind)}
    for key in settings:
        if key not in known:
            raise ValueError(f"{kind.__name__} has no {key!r}. It takes {', '.join(known)}.")
    for key, needed in known.items():
        if needed and key not in settings:
            raise ValueError(f"{kind.__name__} needs {key}: {{{name!r}: {{{key!r}: ...}}}}.")
    return kind(**settings)


def read_settings(text: str) -> tuple[str, dict[str, Any]]:
    """A name, and the settings after it.

    Raises:
        ValueError: If one of them is not of the form name=value, or two have one name.

    Example:
        >>> read_settings("galore:rank=128:scale=0.5"), read_settings("sophia:estimate=hutchinson")
        (('galore', {'rank': 128, 'scale': 0.5}), ('sophia', {'estimate': 'hutchinson'}))
    """
    name, *parts = text.split(":")
    settings: dict[str, Any] = {}
    for part in parts:
        if part.count("=") != 1 or not part.partition("=")[0]:
            raise ValueError(
                f"{text!r} has no setting {part!r}. Write name=value, and a colon between settings: 'galore:rank=128:every=200'."
            )
        key, _, value = part.partition("=")
        if key in settings:
            raise ValueError(f"{text!r} has two settings {key!r}. Leave one of them out.")
        try:
            settings[key] = literal_eval(value)
        except (SyntaxError, ValueError):
            settings[key] = value
    return name, settings
