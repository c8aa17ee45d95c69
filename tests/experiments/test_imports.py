"""Experiments import recipes, recipes the package, and nothing the other way."""

import ast
from pathlib import Path


def test_imports_point_one_way():
    root = Path(__file__).parents[2]
    below = {"recipes": ("experiments", "tests"), "lightning_adam_mini": ("experiments", "recipes", "tests"), "experiments": ("tests",)}
    for folder, above in below.items():
        for file in (root / folder).rglob("*.py"):
            imported = {name.split(".")[0] for name in imports_of(file)}
            assert not imported & set(above), file


def test_imports_of_the_experiments_have_no_circle():
    root = Path(__file__).parents[2]
    modules = {".".join(file.relative_to(root).with_suffix("").parts): file for file in (root / "experiments").rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    needs = {name: {found for found in imports_of(file) if found in modules and found != name} for name, file in modules.items()}
    done: set[str] = set()

    def visit(name, way):
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name not in done:
            for other in needs[name]:
                if not name.startswith(f"{other}."):  # a package hands on what is in it
                    visit(other, [*way, name])
            done.add(name)

    for name in modules:
        visit(name, [])


def imports_of(file):
    """Every module that a file imports at any place, by its whole name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
