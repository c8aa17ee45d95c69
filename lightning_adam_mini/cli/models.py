"""Models by name, without their memory: what the commands take as MODEL."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

HELP = (
    "timm:NAME (a timm model), hf:CONFIG.json (a Hugging Face configuration file), or module.path:factory (a function or class that is"
    " called without arguments)"
)


def build_model(spec: str) -> nn.Module:
    """Build a model on the meta device, where it costs no memory.

    Args:
        spec: ``timm:NAME``, ``hf:CONFIG.json`` or ``module.path:factory``.

    Raises:
        ValueError: If the spec is none of these, or names nothing; says what would.
        ModuleNotFoundError: If the library that it needs is not installed.

    Example:
        >>> build_model("torch.nn:Identity")
        Identity()
    """
    kind, colon, name = spec.partition(":")
    if not colon or not name:
        raise ValueError(f"Cannot tell what model {spec!r} is. Write {HELP}.")
    build = {"timm": _timm, "hf": _hugging_face}.get(kind)
    with torch.device("meta"):
        model = build(name) if build else _factory(kind, name)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec!r} gave {type(model).__name__}, not a torch.nn.Module. Name a function or class that makes one.")
    return model


def _timm(name: str) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    return timm.create_model(name)


def _hugging_face(name: str) -> nn.Module:
    import transformers

    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the path of a Hugging Face config.json.")
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        config = transformers.AutoConfig.for_model(**values)
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a configuration that transformers knows: {error} It needs a known model_type.") from error
    # The class that the checkpoint was made with, for its output layer; else the bare model.
    architecture = getattr(transformers, next(iter(values.get("architectures") or ["AutoModel"])), transformers.AutoModel)
    make = getattr(architecture, "_from_config", None) or architecture.from_config
    return make(config)


def _factory(module: str, name: str) -> Any:
    sys.path.insert(0, "")  # python -m puts this there only for the program's own folder
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"There is no module {module!r} to import from {Path.cwd()}. Write {HELP}.") from error
        raise
    finally:
        sys.path.pop(0)
    if not callable(factory := getattr(found, name, None)):
        near = difflib.get_close_matches(name, dir(found), n=3)
        raise ValueError(f"Module {module!r} has no function {name!r}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"{module}:{name} cannot be called without arguments: {error}. Write a function that calls it with yours."
        ) from error
    return factory()
