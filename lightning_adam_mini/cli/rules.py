"""``python -m lightning_adam_mini rules``: read and compare SlimAdam's rules."""

from __future__ import annotations

import argparse

from lightning_adam_mini.partition import Rule, SlimAdamRules


def add_rules_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``rules`` to the commands."""
    parser = commands.add_parser(
        "rules", help="show SlimAdam's rules, or how two files of them differ", description="Read SlimAdam's rules."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    show = kinds.add_parser("show", help="where the rules of a file come from, and what they average")
    show.add_argument("file", metavar="FILE", help="a file that SNRMonitor wrote")
    show.set_defaults(run=lambda arguments: SlimAdamRules.load(arguments.file).table())
    diff = kinds.add_parser("diff", help="what two files average differently, and how their provenance differs")
    diff.add_argument("old", metavar="FILE")
    diff.add_argument("new", metavar="FILE")
    diff.set_defaults(run=lambda arguments: diff_rules(SlimAdamRules.load(arguments.old), SlimAdamRules.load(arguments.new)))


def diff_rules(old: SlimAdamRules, new: SlimAdamRules) -> str:
    """What two sets of rules average differently, as plain text.

    Raises:
        ValueError: If one is by parameter and the other by layer type.

    Example:
        >>> old, new = (SlimAdamRules("layer_type", {"query": rule}) for rule in (Rule((1,), 3.0), Rule((), 0.5)))
        >>> print(diff_rules(old, new))
        query  [1] (SNR 3) -> nothing (SNR 0.5)
        1 of 1 rules differ.
    """
    if old.by != new.by:
        raise ValueError(f"Rules by {old.by} and rules by {new.by} cannot be compared. Derive both by the same.")
    facts = dict.fromkeys([*old.provenance, *new.provenance])
    lines = [f"{key}: {a} -> {b}" for key in facts if (a := old.provenance.get(key)) != (b := new.provenance.get(key))]
    keys = dict.fromkeys([*old.rules, *new.rules])
    pairs = [(key, old.rules.get(key), new.rules.get(key)) for key in keys]
    differing = [(key, a, b) for key, a, b in pairs if a is None or b is None or (a.dims, a.crossed) != (b.dims, b.crossed)]
    width = max((len(key) for key, _, _ in differing), default=0)
    lines += [f"{key.ljust(width)}  {_text(a)} -> {_text(b)}" for key, a, b in differing]
    return "\n".join([*lines, f"{len(differing)} of {len(pairs)} rules differ."])


def _text(rule: Rule | None) -> str:
    if rule is None:
        return "no rule"
    snr = "" if rule.snr is None else f" (SNR {rule.snr:.3g})"
    return f"{rule}{snr}"
