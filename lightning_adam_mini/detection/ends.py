"""The two ends of a network: embeddings, patch embeddings and first convolutions; outputs, which are what no layer reads again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_adam_mini.detection.calls import calls_attention
from lightning_adam_mini.detection.layers import (
    claim_pointwise,
    fans,
    is_bare,
    is_conv,
    is_embedding,
    is_linear,
    is_matrix,
    is_norm,
    is_pointwise,
    line_axis,
)
from lightning_adam_mini.detection.names import ATTENTION_WORDS, unwrap, words
from lightning_adam_mini.detection.roles import OUTPUTS, RECURRENT, Role, Source
from lightning_adam_mini.detection.signs import core_of, has_tied_table, time_argument, time_words
from lightning_adam_mini.detection.tree import Claim, Slot, Tree
from lightning_adam_mini.detection.unet import find_time_blocks

_TABLES = (
    (frozenset({"pos", "position", "positions", "positional", "rel", "relative", "wpe", "distance"}), Role.POSITION_EMBEDDING),
    (frozenset({"time", "timestep", "timesteps"}), Role.TIME_EMBEDDING),
    (frozenset({"type", "segment", "class", "label", "labels", "language", "langs", "lang"}), Role.TYPE_EMBEDDING),
    (frozenset({"query", "queries"}), Role.SPECIAL_TOKEN),
)
_RELATIONS = frozenset({"rel", "relative"})  # of places, or of facts, which are inputs
_STEPS = frozenset({"timestep", "timesteps", "temb"})
_EMBEDS = frozenset({"embed", "embedding", "embedder", "embeddings", "emb", "embeds", "mlp", "proj", "projection", "in", "encoder", "fc"})
_MODULATION = frozenset({"ada", "adaptive", "adaln", "zero", "single", "continuous"})
_MODULATORS = frozenset({"modulation", "mod", "modulate", "film", "adaln"})
_HEADS = frozenset({"head", "heads", "classifier", "fc", "classification", "logits", "output", "out", "predictor", "prediction", "pred"})
_DIGITS = "0123456789"
_EMBEDDINGS = frozenset({Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.TYPE_EMBEDDING, Role.SPECIAL_TOKEN})


def claim_ends(tree: Tree) -> None:
    """Add the claims of all embeddings, what embeds time, modulations, and output layers."""
    claim_pointwise(tree)
    core = dict.fromkeys(core_of(tree))
    steps = time_words(core) - {"t"}
    for module in tree.modules.values():
        with tree.guarded(module):
            _claim_embedding(tree, module)
            if module not in core:
                _claim_condition(tree, module, steps)
            _claim_patches(tree, module)
            for method, roles in (
                ("get_input_embeddings", None),
                ("get_output_embeddings", Role.LM_HEAD),
                ("get_classifier", Role.CLASSIFIER),
            ):
                _claim_declared(tree, module, method, roles)
    with tree.guarded(tree.root):
        _claim_told(tree, core)
        _claim_time_blocks(tree)
        _claim_time_readers(tree)
        _claim_outputs(tree)
        _claim_first(tree)


def _claim_declared(tree: Tree, module: nn.Module, method: str, role: Role | None) -> None:
    """What a method such as ``get_input_embeddings`` returns."""
    get = getattr(type(module), method, None)
    try:
        found = get(module) if get is not None else None
    except Exception:  # not implemented, or not for this variant of the model
        return
    slot = tree.own(unwrap(found)).get("weight") if isinstance(found, nn.Module) else None
    is_table = slot is not None and is_embedding(slot.layer)
    if slot is None or is_table != (role is None):  # a tied output layer is the table
        return
    if not slot.is_open if role else slot.role is Role.POSITION_EMBEDDING:
        return
    axis = line_axis(slot.layer) if is_linear(slot.layer) else 0
    slot.add(Claim(Source.KNOWN, role or Role.TOKEN_EMBEDDING, f"what {method}() returns", axis=axis))


def _claim_embedding(tree: Tree, module: nn.Module) -> None:
    kind, slot = type(module).__name__, tree.own(module).get("weight")
    for bare in tree.own(module).values():
        if bare.layer is module and not is_embedding(module) and bare.is_open and bare.role is Role.TOKEN_EMBEDDING:
            tables = [tree.own(child).get("weight") for child in tree.children(module).values() if is_embedding(child)]
            if any(s is not None and s.shape[1:] == bare.shape[1:] and s.shape[0] > bare.shape[0] for s in tables):
                why = f"table of {kind}, which is added to what another one gives"
                bare.suppose(Role.POSITION_EMBEDDING, why)
    if slot is None or slot.layer is not module or not is_embedding(module) or not slot.is_open:
        return
    *outer, name = slot.path.split(".")
    named, uses = {*words(name), *words(kind)}, tree.shown.uses.get(slot, set())
    if "place" in uses and "table" not in uses:
        slot.suppose(Role.POSITION_EMBEDDING, f"{kind} of {slot.shape[0]} entries; running showed that no input looks them up")
        return
    if name in ("emb", "embedding", "embed", "weight") and outer:
        named.update(words(outer[-1]))
    for known, role in _TABLES:
        if not (known - _RELATIONS if "table" in uses else known).isdisjoint(named):
            slot.suppose(role, f"{kind} of {slot.shape[0]} entries named {name}")
            return
    # Beside a larger table of the same width it may be one of positions or types.
    holder = tree.parents[module][0] if module in tree.parents else module
    beside = [s for inner in tree.children(holder).values() if is_embedding(inner) for s in tree.own(inner).values()]
    unsure = not name.isdecimal() and any(s.shape[1:] == slot.shape[1:] and s.shape[0] > slot.shape[0] for s in beside)
    is_token = not {"token", "tokens", "word", "words", "tok", "vocab", "item"}.isdisjoint(named)
    why = f"{kind} of {slot.shape[0]} entries" + (", though a larger one stands beside it" if unsure else "")
    slot.suppose(Role.TOKEN_EMBEDDING, why, guess=unsure and not is_token)


def _claim_condition(tree: Tree, module: nn.Module, steps: frozenset[str]) -> None:
    """Layers that turn a time step, whose argument is called by ``steps``, or a condition into features, or these into scales of a norm."""
    kind, named = type(module).__name__, set(_names(tree, module))
    attr = set(words(tree.name_of(module)))
    if "FiLM" in kind + tree.name_of(module):  # as the paper spells it
        named.add("film")
    is_time = "time" in named or not _STEPS.isdisjoint(named) or (("t" in attr or "step" in attr) and not _EMBEDS.isdisjoint(attr))
    is_time = is_time or not steps.isdisjoint(attr) or ("diffusion" in named and not {"embedding", "projection"}.isdisjoint(named))
    if is_time and "mix" not in named and tree.attention.keys().isdisjoint(module.modules()) and not any(map(is_conv, module.modules())):
        role, why = Role.TIME_EMBEDDING, "embeds the time step"
    elif is_norm(module) and not _MODULATION.isdisjoint(named):
        role, why = Role.MODULATION, "scales and shifts a norm"
    elif (not _MODULATORS.isdisjoint(named) or (is_linear(module) and "norm" in attr)) and _may_modulate(tree, module):
        role, why = Role.MODULATION, "makes what scales and shifts a norm"
    else:
        return
    for slot in tree.under(module):
        if is_matrix(slot):
            slot.suppose(role, f"{kind} {why}")


def _claim_told(tree: Tree, core: Iterable[nn.Module]) -> None:
    """Maps that read nothing but one number per sample, in a network that is told the time or a level of noise."""
    if tree.shown.told and time_argument(core):
        for slot in tree.shown.told:
            if slot.is_open and slot.role in (Role.LINEAR, Role.CONV, Role.FIRST_CONV):
                slot.suppose(Role.TIME_EMBEDDING, "running showed that it reads nothing but one number per sample")


def _claim_time_blocks(tree: Tree) -> None:
    """In a UNet of diffusion, the layers that make the time vector, and those that read it."""
    blocks = find_time_blocks(tree)
    for slots, what in ((blocks.makers, "makes"), (blocks.slots, "reads")) if blocks is not None else ():
        for slot in slots:
            if is_matrix(slot):
                slot.suppose(Role.TIME_EMBEDDING, f"{type(slot.layer).__name__} {what} the time vector")


def _may_modulate(tree: Tree, module: nn.Module) -> bool:
    """Whether ``module`` is more than a linear layer, or one that gives several vectors as wide as what it reads."""
    if not tree.attention.keys().isdisjoint(module.modules()):
        return False  # it is more than that: a block of films
    slot = tree.own(module).get("weight") if is_linear(module) else None
    return slot is None or (fans(slot)[0] > fans(slot)[1] and fans(slot)[0] % fans(slot)[1] == 0)


def _claim_time_readers(tree: Tree) -> None:
    """What reads as many numbers as only what embeds time gives, or what an activation leaves of them: scales and shifts."""
    makers = [slot for slot in tree.slots if slot.role is Role.TIME_EMBEDDING and is_linear(slot.layer)]
    made = {fans(slot)[0] for slot in makers}
    for module in tree.modules.values() if makers else ():
        first = next(iter(tree.children(module).values()), None) if isinstance(module, nn.Sequential) else None
        if type(first).__module__ == nn.SiLU.__module__:
            matrices = [slot for slot in tree.under(module) if len(slot.shape) >= 2]
            if len(matrices) == 1 and is_matrix(matrices[0]) and fans(matrices[0])[1] in made:
                matrices[0].suppose(Role.MODULATION, f"{type(matrices[0].layer).__name__} behind an activation, beside what embeds time")
    others = {_gives(slot) for slot in tree.slots if slot.role is not Role.TIME_EMBEDDING}
    widths = made - others - {slot.shape[0] for slot in tree.slots if slot.role is Role.NORM}
    for slot in tree.slots if widths else ():
        if is_matrix(slot) and is_linear(slot.layer) and fans(slot)[1] in widths:
            slot.suppose(Role.MODULATION, f"{type(slot.layer).__name__} reads the time vector")


def _claim_patches(tree: Tree, module: nn.Module) -> None:
    """A linear layer or a convolution in a module that is called a patch embedding."""
    named = _names(tree, module)
    if {"patch", "patches"}.isdisjoint(named) or {"embed", "embedding", "embedder", "embeddings", "in"}.isdisjoint(named):
        return
    linears = [slot for slot in tree.under(module) if is_matrix(slot)]
    linears = linears or [slot for slot in tree.under(module) if slot.role is Role.CONV and slot.is_open]
    if len(linears) == 1:
        linears[0].suppose(Role.PATCH_EMBEDDING, f"{type(module).__name__} embeds patches")


def _claim_outputs(tree: Tree) -> None:
    """Linear layers whose outputs no layer reads: by their number, and by their place at the end or their name."""
    matrices = [s for s in tree.slots if len(s.shape) >= 2 and not s.magnitude and s.role not in (*_EMBEDDINGS, Role.NORM, Role.BIAS)]
    last_read = {width: i for i, slot in enumerate(matrices) for width in _inputs(slot)}
    first_read = {width: i for i, slot in reversed(list(enumerate(matrices))) for width in _inputs(slot)}
    read_in_run = {width for slot in matrices if slot in tree.shown.unread and len(found := _inputs(slot)) == 1 for width in found}
    tables = {slot.shape for slot in tree.slots if slot.role is Role.TOKEN_EMBEDDING}
    entries, vectors = max((shape[0] for shape in tables), default=0), {shape[1] for shape in tables}
    norms = {slot.shape[0] for slot in tree.slots if slot.role is Role.NORM and slot.shape}
    by_column = [is_embedding(slot.layer) or slot.role is Role.RECURRENT_HIDDEN for slot in tree.slots]
    given = {size for slot, turned in zip(tree.slots, by_column, strict=True) for size in slot.shape[turned : turned + 1]}
    convolved = {fans(slot)[1] for slot in matrices if is_conv(slot.layer) and not is_pointwise(slot.layer)}
    joined = [(width, at) for width, at in first_read.items() if width not in given]
    at_end, found, groups = True, has_tied_table(tree), set[nn.Module]()
    for i, slot in reversed(list(enumerate(matrices))):
        if slot.role in OUTPUTS:
            continue
        if _is_unembedding(slot, tables):
            slot.suppose(Role.LM_HEAD, "a matrix with one output per token", axis=1)
            continue
        shown = tree.shown.unread.get(slot)  # running knows; else the order of registration stands for that of use
        if shown and _is_bare_map(slot) and slot.shape[slot.claim.axis] not in read_in_run:
            slot.suppose(Role.CLASSIFIER, f"running showed that no layer reads its {slot.shape[slot.claim.axis]} outputs")
            found = True
            continue
        if not is_matrix(slot) or shown is False or (shown is None and _is_weighing(tree, slot)):
            is_inner = True
        else:  # of several in a list, each may be an output, as wide as nothing that is read
            is_inner = is_repeated(tree, slot.layer) and not (shown and fans(slot)[0] not in read_in_run)
        if is_inner:
            at_end = at_end and not groups.isdisjoint(_holders(tree, slot.layer))
            continue
        outputs, inputs = fans(slot)
        reads_itself = outputs == inputs and first_read[outputs] == last_read[outputs] == i
        unread = outputs not in last_read or reads_itself
        at_end = at_end or shown is True
        # What something behind it reads, all of it or the half that a gate leaves, is no output for its name.
        is_named = not _HEADS.isdisjoint(words(slot.path.replace(".", "_"))) and (
            shown or all(last_read.get(width, -1) <= i for width in (outputs, outputs // 2 if outputs % 2 == 0 else outputs))
        )
        is_named |= outputs > 1 and {"score", "scores"} & set(words(slot.path.rsplit(".", 1)[-1])) != set()
        # An autoencoder gives what its first layer reads; a stream of features is normalised, too.
        returned = outputs != inputs and outputs not in norms and (is_named or last_read.get(outputs) == 0)
        is_scored = unread and outputs == entries > inputs
        # What is as wide as the vectors of a table stands beside them in products, as in DLRM, if something else is the output.
        unread = unread and not (outputs in vectors and found)
        unread = unread and not _is_joined(tree, slot, [(width, matrices[at]) for width, at in joined if at > i])
        unread = unread if shown is None else outputs not in read_in_run or is_named  # a block without a head ends in a stream of features
        restores = outputs in convolved and matrices[i - 1].role in RECURRENT  # the width, behind a recurrent layer, for convolutions
        last = i == len(matrices) - 1 and not restores and (outputs != inputs or not tables) and _is_behind_blocks(tree, slot.layer)
        if ((outputs, inputs) in tables and last_read.get(outputs, -1) <= i) or is_scored or slot.path.rsplit(".", 1)[-1] == "lm_head":
            slot.suppose(Role.LM_HEAD, "one output per token, which no layer reads")
        elif (unread and (at_end or is_named or _is_score(tree, slot))) or (returned and at_end) or last:
            why = f"no layer reads its {outputs} outputs" if not last else f"the last layer, with {outputs} outputs"
            slot.suppose(Role.CLASSIFIER, f"running showed that {why}" if shown and not last else why)
        else:
            at_end = at_end and not groups.isdisjoint(_holders(tree, slot.layer))
            continue
        found = True
        groups.update(module for module in _holders(tree, slot.layer) if isinstance(module, nn.Sequential) and module is not tree.root)


def _is_unembedding(slot: Slot, tables: set[tuple[int, ...]]) -> bool:
    """Whether it is a bare matrix shaped like a table of tokens turned over."""
    return (
        (slot.attr != "weight" or is_bare(slot))
        and slot.is_open
        and slot.role is Role.LINEAR
        and slot.shape[0] != slot.shape[1]
        and slot.shape[::-1] in tables
    )


def _is_bare_map(slot: Slot) -> bool:
    """Whether it is a matrix that a module holds itself, of which running showed along which dimension its outputs lie."""
    return is_bare(slot) and len(slot.shape) == 2 and slot.is_open and slot.role is Role.LINEAR and not slot.claim.guess


def _is_score(tree: Tree, slot: Slot) -> bool:
    """Whether it gives a single number, which no softmax weighs, behind other layers of one list: a value, a reward."""
    is_chain = isinstance(tree.parent(slot.layer), nn.Sequential)
    return is_chain and fans(slot)[0] == 1 and not any(calls_attention(holder) for holder in _holders(tree, slot.layer))


def _is_weighing(tree: Tree, slot: Slot) -> bool:
    """Whether it gives a single number, in a module that weighs by such."""
    holder = next((h for h in _holders(tree, slot.layer) if not isinstance(h, nn.Sequential)), tree.root)
    if fans(slot)[0] > 1 or holder is tree.root:
        return False
    return calls_attention(holder) or not ATTENTION_WORDS.isdisjoint(_names(tree, holder))


def _is_joined(tree: Tree, slot: Slot, read: list[tuple[int, Slot]]) -> bool:
    """Whether a later layer beside it, or beside its list, is the first to read so many numbers, more than it gives: joined ones."""
    around = set(islice(_holders(tree, slot.layer), 3))
    return any(width > fans(slot)[0] and tree.parent(reader.layer) in around for width, reader in read)


def _is_behind_blocks(tree: Tree, layer: nn.Module) -> bool:
    """Whether the module that holds ``layer`` holds a list of blocks before it."""
    holder = tree.parent(layer)
    beside = [] if holder is None else list(tree.children(holder).values())
    lists = [child for child in beside[: beside.index(layer)] if len(child._modules) > 1] if layer in beside else []
    return not isinstance(holder, nn.Sequential) and any(isinstance(child, (nn.ModuleList, nn.Sequential)) for child in lists)


def _inputs(slot: Slot) -> tuple[int, ...]:
    """How many numbers a layer reads; of a bare matrix either may be."""
    if is_linear(slot.layer) or is_conv(slot.layer):
        return (fans(slot)[1],)
    return tuple(size for i, size in enumerate(slot.shape) if i != slot.claim.axis)


def _holders(tree: Tree, module: nn.Module) -> Iterator[nn.Module]:
    return islice(tree.around(module), 1, None)


def is_repeated(tree: Tree, module: nn.Module) -> bool:
    """Whether ``module`` is part of one of several like blocks: in a list, or three or more that are numbered (``block_0``)."""
    for holder in _holders(tree, module):
        if module._modules:
            alike = [name for name, child in tree.children(holder).items() if type(child) is type(module)]
            is_list, stem = isinstance(holder, (nn.ModuleList, nn.Sequential)), tree.name_of(module).rstrip(_DIGITS)
            if len(alike if is_list else [name for name in alike if name != name.rstrip(_DIGITS) == stem]) > (1 if is_list else 2):
                return True
        module = holder
    return False


def _claim_first(tree: Tree) -> None:
    """The first convolution: of patches if it steps over its whole kernel or is called so, else of an image."""
    convs = (slot for slot in tree.slots if is_conv(slot.layer) and len(slot.shape) >= 3 and not slot.magnitude)
    first = next((slot for slot in convs if not (is_pointwise(slot.layer) and slot.role is not Role.CONV)), None)
    if first is None or not first.is_open or first.role is not Role.CONV:
        return
    before = tree.slots[: tree.slots.index(first)]
    if any(_gives(slot) == fans(first)[1] for slot in before):
        return  # it reads features
    if _steps_over_patches(first.layer) or "patch" in words(first.path.replace(".", "_")):
        first.suppose(Role.PATCH_EMBEDDING, "first convolution, one output per patch")
        for slot in tree.slots:  # other sizes of patches
            is_open = slot.is_open and slot.role is Role.CONV and fans(slot)[1] == fans(first)[1]
            if is_open and _steps_over_patches(slot.layer):
                slot.suppose(Role.PATCH_EMBEDDING, "one output per patch of what the first convolution reads")
    else:
        first.suppose(Role.FIRST_CONV, "first convolution")


def _steps_over_patches(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.kernel_size == layer.stride and max(layer.stride) > 1


def _gives(slot: Slot) -> int:
    """How many numbers a table or a linear layer gives; 0 for what is no matrix."""
    is_table = is_embedding(slot.layer)
    return 0 if len(slot.shape) != 2 or not (is_table or is_linear(slot.layer)) else slot.shape[1] if is_table else fans(slot)[0]


def _names(tree: Tree, module: nn.Module) -> tuple[str, ...]:
    """The words of the class of ``module`` and of what it is called."""
    return words(type(module).__name__) + words(tree.name_of(module))
