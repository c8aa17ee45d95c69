"""Audits of the recipes' models, of a GPT with wrong heads, and what an audit costs."""

from __future__ import annotations

import resource
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from experiments.hessian.output import write
from lightning_adam_mini import AdamMiniWarning, inspect_model, partition_model
from lightning_adam_mini.analysis.audit import AuditReport, audit_partition
from lightning_adam_mini.table import align
from recipes.cli import RecipeCLI
from recipes.files import write_atomically

MODELS: dict[str, tuple[str, int]] = {
    "gpt": ("configs/gpt_stdlib.yaml", 2),
    "vit": ("configs/vit_digits.yaml", 16),
    "resnet18": ("configs/resnet18_digits.yaml", 16),
    "gat": ("configs/gat_digits.yaml", 1),
    "ddpm": ("configs/ddpm_digits.yaml", 8),
}
"""The recipe of each, and how many examples are used."""
WRONG: dict[str, Any] = {"*.q_proj.weight": {"role": "query", "heads": 16}, "*.k_proj.weight": {"role": "key", "heads": 2}}
"""Heads of a GPT that has 4 in each layer."""


def recipe(config: str) -> tuple[pl.LightningModule, Any]:
    """Return the module of a recipe as it is before training, and its first batch.

    Args:
        config: Its YAML.
    """
    quiet = ["--trainer.logger=false", "--trainer.callbacks=null", "--trainer.enable_checkpointing=false"]
    cli = RecipeCLI(["--config", config, *quiet], run=False)
    cli.model.trainer = cli.trainer  # which some modules ask about the run
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    return cli.model.train(), next(iter(data.train_dataloader()))


def make(out: Path, seed: int = 0, quick: bool = False, model: Sequence[str] | None = None) -> str:
    """Write a table and a JSON for each model and partition, and return a summary.

    Args:
        out: Folder of the files.
        seed: Of the samples.
        quick: Whether to take few columns of the GAT's Hessians only.
        model: Names of the models. [default: all]
    """
    warnings.simplefilter("ignore", AdamMiniWarning)  # doubts about heads, which an audit is about
    rows = [["model", "partition", "pieces", "seconds", "peak MiB", "verdicts"]]
    summary: list[dict[str, Any]] = []
    for name in ["gat"] if quick else model or MODELS:
        config, examples = MODELS[name]
        module, batch = recipe(config)
        report = inspect_model(module)
        cases: list[tuple[str, dict[str, Any]]] = [("adam_mini", {}), ("auto", {})]
        if name == "gpt":
            cases.insert(0, ("adam_mini, wrong heads", WRONG))
        for label, overrides in cases:
            layouts = partition_model(report, label.partition(",")[0], overrides)
            if overrides:  # of these alone, for more columns in the time
                layouts = {name: layout for name, layout in layouts.items() if name.endswith(("q_proj.weight", "k_proj.weight"))}
            columns = 4 if quick else 16
            audit = audit_partition(module, batch, layouts, report=report, examples=examples, columns=columns, seconds=60, seed=seed)
            partition_model(report, label.partition(",")[0], {**overrides, **audit.overrides})  # accepted as they stand
            file = f"audit_{name}_{label.replace(', ', '_').replace(' ', '_')}"
            write(out, file, audit.to_json())
            write_atomically(out / f"{file}.txt", f"{audit.table()}\n")
            row = facts(audit)
            summary.append({"model": name, "partition": label, **row})
            cells = [str(row["pieces"]), f"{row['seconds']:.0f}", f"{row['peak_mib']:.0f}"]
            rows.append([name, label, *cells, ", ".join(f"{count} {verdict}" for verdict, count in row["verdicts"].items())])
            sys.stdout.write(f"{' '.join(rows[-1])}\n")
            sys.stdout.flush()
    write(out, "audit", {"rows": summary})
    return "\n".join(align(rows, "<<>>><"))


def facts(audit: AuditReport) -> dict[str, Any]:
    """Return the size of an audit, its cost, and the verdicts.

    Args:
        audit: What it found.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    verdicts = Counter(str(finding.verdict) for finding in audit.findings)
    return {"pieces": len(audit.findings), "seconds": audit.seconds, "peak_mib": peak, "verdicts": dict(verdicts.most_common())}
