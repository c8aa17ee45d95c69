"""The way from a module to its report."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_adam_mini.detection.adapters import claim_adapters
from lightning_adam_mini.detection.architecture import decide
from lightning_adam_mini.detection.attention import claim_attention
from lightning_adam_mini.detection.attention_output import claim_attention_outputs, claim_attention_rest
from lightning_adam_mini.detection.ends import claim_ends
from lightning_adam_mini.detection.evidence import Evidence, example_call, probe_attention
from lightning_adam_mini.detection.experts import claim_experts
from lightning_adam_mini.detection.graph import claim_graph
from lightning_adam_mini.detection.known import claim_known
from lightning_adam_mini.detection.layers import claim_layers
from lightning_adam_mini.detection.mlp import claim_mlp
from lightning_adam_mini.detection.parts import find_parts, sizes_of
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.running import SECONDS, claim_running
from lightning_adam_mini.detection.shown import claim_shown
from lightning_adam_mini.detection.signs import find_signs
from lightning_adam_mini.detection.tree import Slot, Tree
from lightning_adam_mini.lines import parse_lines


def inspect_model(
    module: nn.Module,
    example_input: Any = None,
    *,
    heads: bool = True,
    probe: bool = True,
    evidence: Evidence | None = None,
) -> ModelReport:
    """Find out what kind of network ``module`` is and what each of its parameters is for.

    Looks at modules, their attributes and shapes; a model on the meta device does as well. Attention whose heads are not known is run by
    itself, on made-up inputs and weights, so that nothing of ``module`` is touched (at most 20 seconds in all); a network written by hand
    once as a whole, for what its layers give to each other. With an example input the model is run on that, without leaving a trace in it,
    and what it then computes confirms or corrects the rest.

    Args:
        module: Any module, wrapped (torch.compile, DDP, checkpointing) or not. Names in the report are relative to it, without the
            prefixes of wrappers.
        example_input: What to call ``module`` with: a mapping as keywords, a tuple or list one by one, anything else as the only
            argument. [default: the whole model is not run]
        heads: Whether the order of heads in the lines of attention is asked for. Else nothing is run, and no doubt about it is told.
        probe: Whether modules may be run by themselves.
        evidence: What an earlier run of ``module`` showed.

    Raises:
        ValueError: If a parameter is lazy and has no shape yet, or the module does not run on the example.

    Example:
        >>> report = inspect_model(nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=16))
        >>> report.by_name["self_attn.in_proj_weight"].lines
        'q:2x4|k:2x4|v:2x4'
    """
    if not isinstance(module, nn.Module):
        remedy = "Make an instance of it first" if isinstance(module, type) else "Pass the model itself"
        raise TypeError(f"inspect_model and partition_model take a torch.nn.Module, not {str(module)[:80]!r}. {remedy}.")
    tree = Tree.of(module)
    claim_layers(tree)
    claim_known(tree)
    claim_adapters(tree)
    claim_attention(tree, heads)
    if example_input is not None:
        args, kwargs = example_call(example_input)
        evidence = probe_attention(module, *args, **kwargs)
    if evidence is not None:
        claim_shown(tree, evidence)
    if heads:
        claim_running(tree, SECONDS if probe else 0.0)
    claim_attention_outputs(tree)
    claim_attention_rest(tree)
    claim_graph(tree)
    claim_experts(tree)
    claim_ends(tree)
    claim_mlp(tree)
    signs = find_signs(tree)
    architecture, why, guess = decide(signs, sizes_of(tree))
    parts = find_parts(tree)
    return ModelReport(architecture, why, tuple(_report(tree, slot) for slot in tree.slots), parts, guess, signs)


def _report(tree: Tree, slot: Slot) -> ParameterReport:
    claim = slot.claim
    owner, lines = claim.owner or claim.role, claim.lines
    weight = tree.own(slot.layer).get(slot.attr.replace("bias", "weight"))
    if claim.role is Role.BIAS and slot.is_open and weight not in (None, slot):  # it follows its weight: `in_proj_weight`
        owner = weight.claim.owner or weight.role
        lines = weight.claim.lines if _fits(weight.claim.lines, slot) else None
    if claim.role is Role.LORA_B and lines is None:
        lines = _adapted_lines(tree, slot)
    return ParameterReport(
        name=slot.name,
        shape=slot.shape,
        role=claim.role,
        owner=owner,
        reason=claim.reason,
        guess=claim.guess,
        axis=claim.axis,
        lines=lines,
        trainable=slot.param.requires_grad,
        aliases=tuple(slot.names[1:]),
        source=claim.source,
    )


def _fits(lines: str | None, slot: Slot) -> bool:
    return lines is not None and len(slot.shape) >= 1 and parse_lines(lines).size == slot.shape[0]


def _adapted_lines(tree: Tree, slot: Slot) -> str | None:
    """The lines of the layer that a LoRA adapter stands beside."""
    adapted = next((layer for layer in tree.around(slot.layer) if "base_layer" in layer._modules), None)
    base = None if adapted is None else tree.own(tree.children(adapted)["base_layer"]).get("weight")
    return base.claim.lines if base is not None and _fits(base.claim.lines, slot) else None
