"""Models by name, without their memory: what the commands take as MODEL."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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
        ValueError: If the spec is none of these, or names nothing, or what it names cannot be built; says what would.
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
        model = build(name) if build else find_factory(kind, name)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec!r} gave {type(model).__name__}, not a torch.nn.Module. Name a function or class that makes one.")
    return model


def _library(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        package = name.replace("_", "-")
        raise ModuleNotFoundError(f"{kind}: models need {package}, which is not installed: pip install {package}", name=name) from error


def attempt(what: str, make: Callable[[], Any], failed: str = "cannot be built on the meta device") -> Any:
    """Call ``make``. Whatever goes wrong in somebody else's code is one line that names ``what``.

    Raises:
        ValueError: If it raises.
    """
    try:
        return make()
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{what} {failed}: {type(error).__name__}: {said}") from error


def _timm(name: str) -> nn.Module:
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    return attempt(f"timm's {name}", lambda: timm.create_model(name))


def _hugging_face(name: str) -> nn.Module:
    transformers = _library("transformers", "hf")
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the path of a Hugging Face config.json.")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Give the path of a Hugging Face config.json.") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(transformers.CONFIG_MAPPING), n=3)
        raise ValueError(
            f"{path} is not a configuration that transformers knows: "
            + (
                f"its model_type is {kind!r}" + (f". Did you mean {' or '.join(near)}?" if near else ".")
                if kind
                else "it has no model_type."
            )
        )

    def make() -> nn.Module:
        config = transformers.AutoConfig.for_model(**values)
        # The class that the checkpoint was made with, for its output layer; else the bare model.
        architecture = getattr(transformers, next(iter(values.get("architectures") or ["AutoModel"])), transformers.AutoModel)
        return (getattr(architecture, "_from_config", None) or architecture.from_config)(config)

    return attempt(f"The model of {path}", make)


def find_factory(module: str, name: str, wanted: str = "", failed: str = "cannot be built on the meta device") -> Any:
    """What the function called ``name`` gives, of a module that can be imported from the current folder.

    Args:
        module: The module.
        name: The function.
        wanted: What to write, for errors. [default: all forms of a model]
        failed: What is said of it where it raises.

    Raises:
        ValueError: If there is none, or it raises.
    """
    sys.path.insert(0, "")  # python -m puts this there only for the program's own folder
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"There is no module {module!r} to import from {Path.cwd()}. Write {wanted or HELP}.") from error
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
    return attempt(f"{module}:{name}", factory, failed)
