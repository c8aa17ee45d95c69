"""Audits of the recipes' models, of a GPT with wrong heads, and what an audit costs."""

from __future__ import annotations

import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.hessian.output import Found
from experiments.result import progress
from experiments.tables import Table
from lightning_adam_mini import AdamMiniWarning, BlockLayout, inspect_model, partition_model
from lightning_adam_mini.analysis.audit import AuditReport, Verdict, audit_partitions
from lightning_adam_mini.analysis.audit.verdict import Compared, Finding
from lightning_adam_mini.cli.audit import Bar
from lightning_adam_mini.table import count
from recipes.cli import RecipeCLI

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS: dict[str, tuple[str, int]] = {
    "gpt": ("gpt_stdlib.yaml", 2),
    "vit": ("vit_digits.yaml", 16),
    "resnet18": ("resnet18_digits.yaml", 16),
    "gat": ("gat_digits.yaml", 1),
    "ddpm": ("ddpm_digits.yaml", 8),
}
"""The recipe of each, and how many examples are used."""
WRONG: dict[str, Any] = {"*.q_proj.weight": {"role": "query", "heads": 16}, "*.k_proj.weight": {"role": "key", "heads": 2}}
"""Heads of a GPT that has 4 in each layer."""
WRONG_HEADS, QUERY_KEY = "adam_mini, wrong heads", ("q_proj.weight", "k_proj.weight")
PARTITIONS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "adam_mini": ("adam_mini", {}),
    "auto": ("auto", {}),
    WRONG_HEADS: ("adam_mini", WRONG),
}
"""The partitions that are audited, with overrides."""
COLUMNS = 16
"""Of each Hessian."""


def recipe(config: str) -> tuple[pl.LightningModule, Any]:
    """Return the module of a recipe as it is before training, and its first batch.

    Args:
        config: Name of its YAML.
    """
    quiet = ["--trainer.logger=false", "--trainer.callbacks=null", "--trainer.enable_checkpointing=false"]
    quiet += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    cli = RecipeCLI(["--config", str(CONFIGS / config), *quiet], run=False)
    cli.model.trainer = cli.trainer  # which some modules ask about the run
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    return cli.model.train(), next(iter(data.train_dataloader()))


def make(seed: int = 0, quick: bool = False, model: Sequence[str] | None = None, seconds: float = 200.0) -> Iterator[Found]:
    """Audit each model, its partitions together.

    Ctrl-C ends the columns of one and keeps what it has; while none are computed, it ends all, and what was written stays.

    Args:
        seed: Of the samples.
        quick: Whether to take few columns of the GAT's Hessians only.
        model: Names of the models. [default: all]
        seconds: Time limit of a model's audits.

    Raises:
        MisconfigurationException: There is no model of that name.
    """
    chosen = ["gat"] if quick else list(model or MODELS)
    unknown = [name for name in chosen if name not in MODELS]
    if unknown:
        raise MisconfigurationException(f"--model {unknown[0]}: audits are of {', '.join(MODELS)}.")
    warnings.simplefilter("ignore", AdamMiniWarning)  # doubts about heads, which an audit is about
    for name in chosen:
        yield _found(name, seconds, _audits(name, seed, 8 if quick else COLUMNS, seconds))


def _audits(name: str, seed: int, columns: int, seconds: float) -> dict[str, AuditReport]:
    """The audits of a model, by partition."""
    config, examples = MODELS[name]
    module, batch = recipe(config)
    report = inspect_model(module)
    layouts: dict[str, dict[str, BlockLayout]] = {}
    for label, (partition, overrides) in PARTITIONS.items():
        if name == "gpt" or not overrides:
            layouts[label] = partition_model(report, partition, overrides)
    layouts = {
        label: {n: layout for n, layout in some.items() if label != WRONG_HEADS or n.endswith(QUERY_KEY)} for label, some in layouts.items()
    }
    progress(f"audit: {name}, {len(report.parameters)} parameters, {seconds:g} s at most (Ctrl-C: what is done so far)")
    options: dict[str, Any] = dict(report=report, examples=examples, columns=columns, seconds=seconds, seed=seed)
    audits = audit_partitions(module, batch, layouts, **options, progress=Bar(sys.stderr))
    for label, (partition, overrides) in PARTITIONS.items():
        if label in audits:
            partition_model(report, partition, {**overrides, **audits[label].overrides})  # accepted as they stand
    return audits


def _found(name: str, seconds: float, audits: Mapping[str, AuditReport]) -> Found:
    """The audits of a model as its result."""
    config, examples = MODELS[name]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    most = max(finding.columns for audit in audits.values() for finding in audit.findings)
    ended = [note for note in next(iter(audits.values())).notes if note.startswith("Stopped")]
    limits = " ".join([f"Time limit: {seconds:g} s.", *ended])
    text = (
        f"`configs/{config}` at initialisation, {count(examples, 'example')} of its first batch, up to {most} columns of each Hessian."
        f" {limits} The process held {peak:.1f} GiB at its peak. `?`: within two standard errors of another verdict, and so not among the"
        " overrides."
    )
    rows = [{"partition": label, **_row(finding)} for label, audit in audits.items() for finding in audit.findings]
    facts = {label: {"overrides": audit.overrides, "notes": audit.notes, "left_out": audit.left_out} for label, audit in audits.items()}
    return Found(f"audit_{name}", f"Audit of {name}", text, rows, _table(audits), facts={**facts, "peak_gib": round(peak, 2)})


def _table(audits: Mapping[str, AuditReport]) -> Table:
    """Verdicts by role, a column each partition."""
    cells: dict[str, dict[str, list[Finding]]] = {}
    for label, audit in audits.items():
        for finding in audit.findings:
            cells.setdefault(_role(finding), {}).setdefault(label, []).append(finding)
    lines = [
        [role, str(max(map(len, by.values()))), *(_said(by.get(label, ())) for label in audits)]  # one partition may look at less
        for role, by in cells.items()
    ]
    return Table(["role", "pieces", *audits], lines)


def _said(findings: Sequence[Finding]) -> str:
    """The layouts of some pieces, and what is said of them."""
    by_layout: dict[str, Counter[str]] = {}
    for finding in findings:
        by_layout.setdefault(finding.own.label, Counter())[_verdict(finding)] += 1
    return "; ".join(
        f"{layout}: {', '.join(f'{number} {verdict}' for verdict, number in verdicts.most_common())}"
        for layout, verdicts in by_layout.items()
    )


def _verdict(finding: Finding) -> str:
    """A verdict, with what is suggested."""
    text = str(finding.verdict) if finding.suggestion is None else f"{finding.verdict} ({finding.suggestion.label})"
    if finding.verdict is Verdict.MATCHES and finding.reason.startswith("by second moments"):
        text += " by 2nd moments"
    return f"{text} ?" if finding.near else text


def _role(finding: Finding) -> str:
    return finding.segment.role or str(finding.segment.parameter.role)


def _row(finding: Finding) -> dict[str, Any]:
    """What was found about one piece, as numbers of four digits; what there is not is left out."""

    def beside(kind: str, compared: Compared | None) -> dict[str, Any]:
        if compared is None:
            return {}
        share = compared.share
        numbers = {kind: compared.label, f"{kind}_share": share.share, f"{kind}_null": share.null, f"{kind}_moments": compared.moments}
        return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in numbers.items() if value == value}

    row: dict[str, Any] = {"parameter": finding.segment.name, "role": _role(finding), "shape": "x".join(map(str, finding.segment.shape))}
    row |= {"columns": finding.columns, **beside("own", finding.own), **beside("finer", finding.finer)}
    row |= {**beside("coarser", finding.coarser), **beside("crossed", finding.crossed), "verdict": str(finding.verdict)}
    if finding.near:
        row["near_another"] = True
    if finding.suggestion is not None:
        row["suggestion"] = finding.suggestion.label
    return row
