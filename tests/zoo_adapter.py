"""Adapts `inspect_model` to the zoo's `score.py`: `python score.py tests.zoo_adapter:detect`."""

from torch import nn

from lightning_adam_mini.detection import inspect_model


def detect(model: nn.Module) -> dict[str, dict[str, str | None]]:
    found = {}
    for p in inspect_model(model).parameters:
        for name in (p.name, *p.aliases):
            found[name] = {"role": p.role.value, "layout": p.lines}
    return found
