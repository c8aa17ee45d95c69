"""The README and the site: blocks of code run, commands exist, links lead somewhere, and every public name has a page."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest
import torch
import yaml
from torch import nn

import lightning_adam_mini
from lightning_adam_mini.cli.main import main
from lightning_adam_mini.partition import STRATEGIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest needs there

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PUBLIC = ("lightning_adam_mini", *(f"lightning_adam_mini.{room}" for room in ("analysis", "detection", "optim", "partition")))
OPTIONAL = {"accelerate", "transformers"}
"""Packages of others that a page's code may need; a block that does is skipped without them."""

BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.M | re.S)
INLINE = re.compile(r"`(python -m [^`]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


def blocks(*languages):
    """Each block of code: its page, the line it begins at, its language and text."""
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[2] in languages:
                yield page, text[: match.start(3)].count("\n"), match[3]


def named(found):
    return [pytest.param(*f, id=f"{f[0].relative_to(ROOT)}:{f[1]}") for f in found]


class Small(L.LightningModule):
    """What a page calls ``model``: a few layers, fifty batches."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(100, 8), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


# ---- blocks of code


@lru_cache
def names_of(page):
    """The names that a page's code finds, which its blocks share."""
    network = Small().net
    texts = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(8)]
    return {"__name__": page.name, "model": Small(), "network": network, "inputs": torch.ones(2, 8), "texts": texts}


@pytest.mark.parametrize(("page", "line", "text"), named(blocks("python")))
@pytest.mark.filterwarnings("ignore")
def test_python(page, line, text, tmp_path, monkeypatch):
    """In the order of the page, in one namespace; tracebacks show the page's own lines."""
    monkeypatch.chdir(tmp_path)
    text = text.replace("max_steps=1000", "max_steps=100")  # what takes a reader minutes takes a test seconds
    registered = dict(STRATEGIES)
    try:
        exec(compile("\n" * line + text, page, "exec"), names_of(page))
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(registered)


@pytest.mark.parametrize(("page", "line", "text"), named(blocks("yaml")))
@pytest.mark.filterwarnings("ignore")
def test_yaml(page, line, text, tmp_path, monkeypatch):
    """A user's LightningCLI takes it; and what the pages add on the command line, by path and by short name."""
    cli = pytest.importorskip("lightning.pytorch.cli")
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    for callback in ("lightning_adam_mini.AdamMiniCallback", "AdamMiniCallback"):
        for args in (["--config", "config.yaml"], [f"--trainer.callbacks+={callback}", "--trainer.callbacks.momentum_dtype=8bit"]):
            made = cli.LightningCLI(Small, run=False, args=args, save_config_callback=None)
            assert isinstance(made.trainer.callbacks[0], lightning_adam_mini.AdamMiniCallback)


# ---- commands


def commands():
    """Each command line of the pages, in blocks and in sentences, with where it stands first."""
    found = {}
    for page, line, text in blocks("bash"):
        for shown in text.replace("\\\n", " ").splitlines():
            for command in shown.split("#")[0].split("&&"):
                found.setdefault(command.strip(), (page, line))
    for page in PAGES:
        for match in INLINE.finditer(text := page.read_text()):
            found.setdefault(match[1], (page, text[: match.start()].count("\n") + 1))
    return [(page, line, command) for command, (page, line) in found.items()]


@lru_cache
def help_of(module, *command):
    """What a command's ``--help`` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(f"{module}.__main__").main([*command, "--help"])
    return out.getvalue()


def check_package(words, capsys, page):
    """Our own command runs, or finds everything right but the user's file or module that it was given."""
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert not status or re.search(r"my_package|config\.json|slim_adam_rules\.yaml|\bNAME\b|\bFILE\b", error), f"{page}: {error}"


def check_tool(module, words):
    """The subcommand is there and has each option, but those with a dot, which are a LightningCLI's; files of ours are there too."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not in this checkout")
    if words[0].startswith("-"):
        return
    assert re.search(rf"^ +{re.escape(words[0])}\b", help_of(module), re.M), f"python -m {module} --help does not list {words[0]}"
    command = list(itertools.takewhile(lambda word: not word.startswith("-"), words))[:2]
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    options = {option for option in options if "." not in option} - {"--config", "--ckpt_path"}
    for option in options:
        assert re.search(rf"{option}\b", help_of(module, *command)), f"python -m {module} {' '.join(command)} --help has no {option}"
    for word in words:
        assert not word.startswith("configs/") or word.endswith("/") or (ROOT / word).is_file(), f"{word} is missing"


@pytest.mark.parametrize(("page", "line", "command"), named(commands()))
def test_command(page, line, command, capsys):
    if "..." in command or "|" in command.split("'")[0] or "<" in command:  # a sketch of a command: its name at least
        command = re.split(r"\.\.\.|\||<", command)[0]
    words = shlex.split(command, comments=True)
    if words[:2] == ["pip", "install"]:
        for extras in re.findall(r"\[(.*)\]", command):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    elif words[:2] == ["python", "-m"] and words[3:]:
        module, words = words[2], words[3:]
        if module == "lightning_adam_mini":
            check_package(words, capsys, page)
        elif module in ("recipes", "experiments"):
            check_tool(module, words)
        elif module == "pytest":
            assert all((ROOT / word).exists() for word in words if "/" in word)


# ---- links, names, versions


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links(page):
    """Links of pages that are read outside the site too."""
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


def test_site(tmp_path):
    """It builds, links and anchors included, without a warning, and asks for nothing from elsewhere."""
    pytest.importorskip("mkdocs_get_deps", reason="needs the extra docs")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    for page in tmp_path.rglob("*.html"):
        html = page.read_text()
        assert not re.search(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(?:https?:)?//', html), page
        assert not re.search(r":(?:class|func|meth|mod|attr|data|math):", html), f"{page} has a role that docs/roles.py does not read"


def test_every_public_name_has_a_reference():
    documented = []
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M):
            module, _, name = path.rpartition(".")
            documented.append(getattr(importlib.import_module(module), name))
    missing = [
        f"{module}.{name}"
        for module in PUBLIC
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and not any(value is known for known in documented)
    ]
    assert not missing


def test_every_partition_is_in_the_table():
    table = (ROOT / "docs" / "choose.md").read_text().partition("## What a block is")[2].partition("###")[0]
    ours = {name for name, strategy in STRATEGIES.items() if strategy.__module__.startswith("lightning_adam_mini.")}
    assert set(re.findall(r'"(\w+)"', table)) >= ours


def test_versions_agree():
    """What a release is called is said in three places; the pinned ruff in two."""
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    [ruff] = [repo for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] if "ruff" in repo["repo"]]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in PROJECT["optional-dependencies"]["dev"]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
