"""Models of timm, transformers and diffusers whose roles and line orders were read from their forward code.

``tests/data/zoo.json.gz`` has the truth: a role for each parameter, and of what makes queries and keys the line order. ``ZOO`` in the
environment names a larger collection in the same form.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_adam_mini.lines import parse_lines
from tests.zoo_adapter import detect

TRUTH = Path(os.environ.get("ZOO", Path(__file__).parents[1] / "data" / "zoo.json.gz"))


def build(kind: str, entry: dict[str, Any]) -> nn.Module | None:
    """The model on the meta device; None of a kind that only the larger collection knows."""
    with torch.device("meta"):
        if kind == "timm":
            return pytest.importorskip("timm").create_model(entry["name"], pretrained=False)
        if kind == "hf":
            transformers = pytest.importorskip("transformers")
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING

            cls, model_type, options = entry["spec"]
            return getattr(transformers, cls)._from_config(CONFIG_MAPPING[model_type](**options))
        if kind == "diffusers":
            cls, options = entry["spec"]
            return getattr(pytest.importorskip("diffusers"), cls)(**options)
    return None


def heads(lines: str | None) -> set[tuple[str, frozenset[int]]]:
    """The lines of each head of queries and of keys."""
    found: dict[tuple[str, int], set[int]] = {}
    for i, (role, head) in enumerate(parse_lines(lines).expand() if lines else ()):
        if role in ("q", "k"):
            found.setdefault((role, head), set()).add(i)
    return {(role, frozenset(rows)) for (role, _), rows in found.items()}


def is_right(truth: dict[str, Any], found: dict[str, Any]) -> bool:
    """Heads of what makes queries and keys; the role of token embeddings and output layers of tokens."""
    lines = truth.get("layout") or ""
    if re.search(r"\b[qk]:|\[[^]]*\b[qk]\b", lines):
        return heads(lines) == heads(found.get("layout"))
    return truth["role"] not in ("token_embedding", "lm_head") or found.get("role") == truth["role"]


@pytest.mark.parametrize("entry", json.loads(gzip.decompress(TRUTH.read_bytes()))["models"], ids=lambda entry: entry["model"])
def test_models_of_the_zoo_are_right(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(entry["build"]["kind"], entry["build"])
    if model is None:
        pytest.skip(f"a model of the kind {entry['build']['kind']!r} is not built here")
    found = detect(model)
    assert [name for name, truth in entry["params"].items() if not is_right(truth, found.get(name, {}))] == []
