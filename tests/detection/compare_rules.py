"""Scores our detection and the rules of PyPI ``adam-mini`` on one list of models whose attention was labelled by hand.

    python -m tests.detection.compare_rules ZOO

ZOO is the folder of that list (``truth.json.gz``, ``models.py``, ``score.py``). A model counts where all its queries and keys have
their true heads as blocks; the rules of ``adam-mini`` are given the block size that suits them best, and must also take a step.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import importlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.zoo_adapter import detect

Truth = dict[str, dict[str, Any]]
Heads = dict[str, set[frozenset[int]]]


def queries_and_keys(params: Truth, score: Any) -> Heads:
    """The lines of each query and key head, of all weights that have such."""
    heads = {}
    for name, truth in params.items():
        if truth.get("layout") and len(truth["shape"]) > 1 and "attention" in score.judge(truth, None):
            heads[name] = {lines for _, lines in score.head_lines(truth["layout"])}
    return heads


def official(model: nn.Module, params: Truth, heads: Heads) -> str:
    """What the rules of ``adam-mini`` make of a model: ``exact``, or the first thing that they do not do."""
    from adam_mini import Adam_mini

    rules = Adam_mini([("x", nn.Parameter(torch.zeros(1)))], verbose=False)
    if not all("bias" not in name.lower() and any(part in name.lower() for part in rules.wqk_names) for name in heads):
        return "not recognised"
    per_line = {name: math.prod(params[name]["shape"]) // params[name]["shape"][params[name].get("axis") or 0] for name in heads}
    sizes = {len(lines) * per_line[name] for name in heads for lines in heads[name]}
    ends = [exact_or_not(heads, params, per_line, size, model) for size in sizes]
    return next((end for end in ("exact", "raises in step") if end in ends), "wrong blocks")


def exact_or_not(heads: Heads, params: Truth, per_line: dict[str, int], size: int, model: nn.Module) -> str:
    """The same, with blocks of ``size`` elements one after another."""
    from adam_mini import Adam_mini

    for name, blocks in heads.items():
        lines, rest = divmod(size, per_line[name])
        runs = {frozenset(range(min(block), min(block) + lines)) for block in blocks}
        if rest or params[name].get("axis") or runs != blocks or any(min(block) % lines for block in blocks):
            return "wrong blocks"
    try:
        optimizer = Adam_mini(model.named_parameters(), verbose=False, dim=size, n_heads=size)  # blocks of dim * dim / n_heads
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    except Exception:
        return "raises in step"
    finally:
        model.zero_grad(set_to_none=True)
    return "exact"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="the folder of the list")
    zoo = parser.parse_args().zoo.resolve()
    sys.path.insert(0, str(zoo))
    score, models = importlib.import_module("score"), importlib.import_module("models")
    warnings.simplefilter("ignore")
    ours: collections.Counter[str] = collections.Counter()
    theirs: collections.Counter[str] = collections.Counter()
    for entry in json.loads(gzip.decompress((zoo / "truth.json.gz").read_bytes()))["models"]:
        try:
            model = models.build(entry)
        except ImportError as error:
            sys.stderr.write(f"skipped {entry['model']}: {error}\n")
            continue
        heads = queries_and_keys(entry["params"], score)
        if not heads:
            continue
        found = detect(model)
        right = all(all(score.judge(truth, found.get(name)).values()) for name, truth in entry["params"].items() if name in heads)
        ours["exact" if right else "wrong blocks"] += 1
        theirs[official(model, entry["params"], heads)] += 1
    kinds = ("exact", "wrong blocks", "raises in step", "not recognised")
    rows = [("inspect_model, nothing run", ours), ("rules of adam-mini 1.1.1", theirs)]
    print(f"{sum(ours.values())} models with queries and keys\n")
    print(f"| | {' | '.join(kinds)} |\n|{' --- |' * (len(kinds) + 1)}")
    print("\n".join(f"| {name} | {' | '.join(str(count[kind]) for kind in kinds)} |" for name, count in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
