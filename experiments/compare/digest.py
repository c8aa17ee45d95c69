"""Digests of recipes: equal for equal ones, however they are written, and others where a file that they name has changed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

NOT_OF_THE_RECIPE = ("config", "seed_everything")  # where it was written, and what a comparison sets


def recipe_digest(args: Sequence[str]) -> str:
    """Return a digest of what a command line of ``python -m recipes fit`` amounts to.

    It is of the values that were parsed, so that 3e-3 and 0.003, another order of keys and a value that only repeats the configuration's
    make no difference; and a file that is named counts by what is in it, not by its path.

    Args:
        args: The command line: ``--config``, and overrides.
    """
    from recipes.cli import ParsedRecipe  # seconds to import

    recipe: Namespace = ParsedRecipe(args).config
    content = {key: with_contents(value) for key, value in vars(recipe).items() if key not in NOT_OF_THE_RECIPE}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def with_contents(value: Any) -> Any:
    """Return a value in which the names of files are digests of these files.

    Args:
        value: What was parsed.
    """
    if isinstance(value, Namespace):
        return with_contents(vars(value))
    if isinstance(value, dict):
        return {str(key): with_contents(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_contents(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 train alike
    if isinstance(value, (str, Path)) and value and len(str(value)) < 1000 and Path(value).is_file():
        return {"file": file_digest(Path(value))}
    return value


def file_digest(file: Path) -> str:
    """Return a digest of a file's content.

    Args:
        file: The file.
    """
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
