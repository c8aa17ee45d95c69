"""A module's parameters, each tensor once, with the layer that holds it and what is believed of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_adam_mini.detection.names import join, places, unwrap
from lightning_adam_mini.detection.roles import Role, Source

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """One statement on one parameter. The fields are those of :class:`~lightning_adam_mini.detection.report.ParameterReport`."""

    source: Source
    role: Role
    reason: str
    owner: Role | None = None
    axis: int = 0
    lines: str | None = None
    guess: bool = False


_NOTHING = Claim(Source.LAYER, Role.OTHER, "nothing is known")


@dataclass(eq=False)
class Slot:
    """One tensor of a model and the place where it is held.

    Attributes:
        param: The tensor.
        names: Its canonical names, more than one if it is tied.
        layer: The module that it is a weight of. For a parametrized weight that is the layer, not the parametrization.
        path: Canonical path of ``layer``.
        attr: Its name on ``layer``, such as ``weight``.
        magnitude: Whether it holds only the magnitudes of weight normalisation.
        claim: What is believed of it.
    """

    param: nn.Parameter
    names: list[str]
    layer: nn.Module
    path: str
    attr: str
    magnitude: bool = False
    claim: Claim = _NOTHING

    def add(self, claim: Claim) -> None:
        """Hear a claim. The stronger source wins; of equals the later, which knows the smaller part of the model."""
        if claim.source >= self.claim.source:
            self.claim = claim

    def suppose(self, role: Role, reason: str, *, axis: int | None = None, guess: bool = False) -> None:
        """Hear a claim from structure. Its lines lie along ``axis``, or where they lie for all that is believed so far."""
        self.add(Claim(Source.STRUCTURE, role, reason, axis=self.claim.axis if axis is None else axis, guess=guess))

    @property
    def role(self) -> Role:
        """The role that holds."""
        return self.claim.role

    @property
    def is_open(self) -> bool:
        """Whether no more is known than the type of the layer."""
        return self.claim.source is Source.LAYER

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.param.shape)


@dataclass
class Shown:
    """What running a whole model showed of what its layers give to each other, and of how parameters are used; nothing if it was not run.

    The fields are those of :class:`~lightning_adam_mini.detection.evidence.evidence.Whole`.

    Attributes:
        unread: Of the weights of maps, whether no layer reads what they give, or one always does.
        fed: Which maps alone feed a map, where they are few.
        uses: How a parameter is used.
        told: The weights of maps that read nothing but one number per sample.
        messages: What showed that a module adds up features along a graph.
        joined: The modules that put together features of a map of places and what comes from smaller ones.
        attends: The modules that compute softmax attention.
        products: The modules that multiply what maps give by products of such.
    """

    unread: dict[Slot, bool] = field(default_factory=dict)
    fed: dict[Slot, set[Slot]] = field(default_factory=dict)
    uses: dict[Slot, set[str]] = field(default_factory=dict)
    told: dict[Slot, None] = field(default_factory=dict)
    messages: dict[nn.Module, str] = field(default_factory=dict)
    joined: dict[nn.Module, None] = field(default_factory=dict)
    attends: dict[nn.Module, None] = field(default_factory=dict)
    products: dict[nn.Module, None] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[Slot, Slot]]:
        """Each map that one other alone feeds, and that other."""
        return ((down, up) for down, ups in self.fed.items() if len(ups) == 1 for up in ups)


@dataclass
class Tree:
    """The slots of a module, and its modules by path."""

    root: nn.Module
    """The outermost module, without the wrappers around a whole model."""
    slots: list[Slot] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Each module once, outer before inner, under the first canonical path it has."""
    parents: dict[nn.Module, tuple[nn.Module, str]] = field(default_factory=dict)
    """The module that holds a module, and under which name."""
    attention: dict[nn.Module, None] = field(default_factory=dict)
    """The modules that are attention, in order; those of the whole model in a part of it too."""
    shown: Shown = field(default_factory=Shown)
    """What running the whole model showed; of the whole model in a part of it too."""
    _by_param: dict[int, Slot] = field(default_factory=dict)
    _own: dict[nn.Module, dict[str, Slot]] = field(default_factory=dict)
    _children: dict[nn.Module, dict[str, nn.Module]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: nn.Module) -> Tree:
        """Walk ``root``.

        Raises:
            ValueError: If a parameter has no shape yet.
        """
        tree = cls(unwrap(root))
        for path, module, holder, name in places(root):
            if holder is not None:
                tree.parents.setdefault(module, (holder, name))
            if module not in tree._own:
                tree.modules[path] = module
                tree._own[module] = {}
            for attr, param in module._parameters.items():
                if param is not None:
                    tree._add(module, path, attr, param)
        return tree

    def _add(self, module: nn.Module, path: str, attr: str, param: nn.Parameter) -> None:
        name = join(path, attr)
        if is_lazy(param):
            raise ValueError(
                f"Cannot inspect the parameter {name!r} because it is lazy and has no shape yet. Run one batch through the model first"
                " (in Lightning: in `setup` or `configure_model`), then inspect it."
            )
        slot = self._by_param.get(id(param))
        if slot is not None:
            if name not in slot.names:
                slot.names.append(name)
            self._own[module].setdefault(attr, slot)
            return
        layer, layer_path, layer_attr, magnitude = module, path, attr, False
        if type(module).__name__ == "ParametrizationList" and ".parametrizations." in f".{path}":
            # torch.nn.utils.parametrize moves `layer.weight` to `layer.parametrizations.weight.original` (0: magnitude, 1: direction).
            holder = self.parents[module][0]
            layer, layer_attr = self.parents[holder][0], path.rsplit(".", 1)[-1]
            layer_path = path.rsplit(".parametrizations.", 1)[0] if ".parametrizations." in path else ""
            magnitude = attr == "original0" and "original1" in module._parameters
        elif attr.endswith(("_g", "_v")) and f"{attr[:-2]}_g" in module._parameters and f"{attr[:-2]}_v" in module._parameters:
            magnitude, layer_attr = attr.endswith("_g"), attr[:-2]
        elif attr.endswith("_orig"):
            layer_attr = attr[:-5]
        slot = Slot(param, [name], layer, layer_path, layer_attr, magnitude)
        self.slots.append(slot)
        self._by_param[id(param)] = slot
        self._own[module].setdefault(attr, slot)
        if layer is not module and not magnitude:
            self._own[layer].setdefault(layer_attr, slot)

    def own(self, module: nn.Module) -> dict[str, Slot]:
        """The slots that ``module`` itself holds, by attribute; a parametrized one under its plain name."""
        return self._own.get(unwrap(module), {})

    def under(self, module: nn.Module) -> Iterator[Slot]:
        """The slots of ``module`` and of all modules in it."""
        seen: set[int] = set()
        for inner in unwrap(module).modules():
            for slot in self._own.get(inner, {}).values():
                if id(slot) not in seen:
                    seen.add(id(slot))
                    yield slot

    @cached_property
    def paths(self) -> dict[nn.Module, str]:
        """The first canonical path of each module."""
        return {module: path for path, module in self.modules.items()}

    def parent(self, module: nn.Module) -> nn.Module | None:
        """The module that holds ``module``; None outside of this tree and for its root."""
        return self.parents[module][0] if module is not self.root and module in self.paths and module in self.parents else None

    def around(self, module: nn.Module) -> Iterator[nn.Module]:
        """``module``, what holds it, and so on out to the root."""
        part: nn.Module | None = module
        while part is not None:
            yield part
            part = self.parent(part)

    def name_of(self, module: nn.Module) -> str:
        """What its holder calls ``module``; nothing for the root."""
        return self.parents[module][1] if module in self.parents else ""

    def part(self, module: nn.Module) -> Tree | None:
        """The tree of ``module`` and what is in it, with the paths and parents that they have here; None if it is not in this tree."""
        if module not in self.paths:
            return None
        modules = {self.paths[inner]: inner for inner in module.modules() if inner in self.paths}
        shared = (self.parents, self.attention, self.shown, self._by_param, self._own, self._children)
        return Tree(module, list(self.under(module)), modules, *shared)

    @contextmanager
    def guarded(self, module: nn.Module) -> Iterator[None]:
        """Let no error in looking at one module stop a run: its own parameters become guesses instead, and the log has the traceback."""
        try:
            yield
        except Exception as error:
            _log.debug("Detection failed on %s (%s)", self.paths.get(module, "?"), type(module).__name__, exc_info=True)
            for slot in self.own(module).values():
                why = f"{slot.claim.reason}; looking further failed with {type(error).__name__}: {error}"
                slot.claim = replace(slot.claim, reason=why, guess=True)

    def children(self, module: nn.Module) -> dict[str, nn.Module]:
        """The direct children of ``module``, unwrapped."""
        if module not in self._children:
            self._children[module] = {name: unwrap(child) for name, child in module._modules.items() if child is not None}
        return self._children[module]
