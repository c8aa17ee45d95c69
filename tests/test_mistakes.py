"""What users get wrong, and the one line that each of them is told: what, why, and what to write instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import SGD, AdamW

from lightning_adam_mini import (
    AdamMini,
    AdamMiniCallback,
    AdamMiniWarning,
    BlockLayout,
    PartitionStrategy,
    SNRMonitor,
    convert_optimizer_,
    inspect_model,
    partition_model,
    to_adamw_state_dict,
)
from lightning_adam_mini.cli.main import main
from lightning_adam_mini.partition import make_strategy
from tests.callbacks.models import TokenModel, fit


def net() -> nn.Linear:
    return nn.Linear(4, 3)


def ours(**options: Any) -> AdamMini:
    return AdamMini([("w", nn.Parameter(torch.ones(4, 3)))], **{"layouts": {}, **options})


def state_of(kind: Any, shape: tuple[int, ...] = (4, 3), **options: Any) -> dict[str, Any]:
    p = nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    optimizer = kind([p], lr=0.1, **options)
    optimizer.step()
    return optimizer.state_dict()


def train(*callbacks: Any, optimizer: Callable[[TokenModel], Any] | None = None) -> None:
    fit(TokenModel(optimizer), *callbacks, max_steps=1)


OVERRIDE = {
    "a list": (["a"], "overrides as a dict of blocks by glob"),
    "a string": ("tensor", "overrides as a dict of blocks by glob"),
    "no glob": ({3: "tensor"}, "The override 3: 'tensor' has no glob"),
    "a misspelt spec": ({"*": "tenser"}, "did you mean 'tensor'"),
    "a number": ({"*": 3}, "a spec is a string, a mapping or a BlockLayout, not int"),
    "None": ({"*": None}, "not NoneType"),
    "nothing": ({"*": {}}, "it says nothing"),
    "a misspelt key": ({"*": {"rol": "query"}}, "did you mean 'role'"),
    "a misspelt role": ({"*": {"role": "qery"}}, "did you mean 'query'"),
    "lines that cannot be read": ({"*": "q:12xx64"}, "Cannot read the line order"),
    "lines that are a number": ({"*": {"lines": 12}}, "line order"),
    "no heads": ({"*": {"role": "query", "heads": 0}}, "0 heads are no heads"),
    "half a head": ({"*": {"role": "query", "heads": 1.5}}, "has to be a whole number"),
    "dims in a string": ({"*": {"dims": "1"}}, "a list of dimensions"),
    "dims of strings": ({"*": {"dims": ["1"]}}, "a list of dimensions"),
    "dims and a role": ({"*": {"dims": [1], "role": "query"}}, "cannot go with 'role'"),
    "crossed alone": ({"*": {"crossed": [1]}}, "give both, or write 'factored'"),
    "lines and heads": ({"*": {"lines": "q:2x2", "heads": 2}}, "give one of them"),
}
CALLBACK = {
    "a misspelt partition": ({"partition": "adam-mini"}, "did you mean 'adam_mini'"),
    "no partition": ({"partition": None}, "has no partition=None"),
    "a class": ({"partition": PartitionStrategy}, "has no partition="),
    "a misspelt option": ({"partition": "adam_mini", "options": {"valu": "whole"}}, "did you mean 'value'"),
    "a misspelt option of the default": (
        {"options": {"embeding": "parameter"}},
        "'auto' has no option 'embeding' .did you mean 'embedding'",
    ),
    "an option of another value": ({"partition": "adam_mini", "options": {"value": "wole"}}, "one of 'neuron', 'whole'"),
    "options in a list": ({"options": ["a"]}, "options as a dict by name"),
    "options in a string": ({"options": "value=whole"}, "options as a dict by name"),
    "options without names": ({"options": {1: 2}}, "options as a dict by name"),
    "options of what is made": ({"partition": make_strategy(), "options": {"embedding": "token"}}, "already made"),
    "no rules": ({"partition": "slim_adam"}, "needs rules"),
    "no file of rules": ({"partition": "slim_adam", "options": {"rules": "nope.yaml"}}, "no file nope.yaml"),
    "no steps": ({"partition": "slim_adam_auto", "options": {"steps": 0}}, "leave no measurement"),
    "steps in words": ({"partition": "slim_adam_auto", "options": {"steps": "many"}}, "steps='many'.*options of the right type"),
    "a dtype that is none": ({"momentum_dtype": "bf16"}, "Invalid momentum_dtype value: 'bf16'"),
    "a dtype of integers": ({"momentum_dtype": torch.int8}, "floating-point torch.dtype or its name"),
    "strict in words": ({"strict": "yes"}, "no strict='yes'. Give True or False"),
    "probe in words": ({"probe": "yes"}, "no probe='yes'"),
    "force for one": ({"force": "RAdam"}, "no force='RAdam'"),
    "convert in words": ({"convert_checkpoints": "no"}, "no convert_checkpoints='no'"),
    "rounding in words": ({"stochastic_rounding": "yes"}, "no stochastic_rounding='yes'"),
    **{f"override: {name}": ({"overrides": given}, message) for name, (given, message) in OVERRIDE.items()},
}
MONITOR = {
    "a string": ({"every": "10"}, "no every='10'"),
    "half a step": ({"every": 0.5}, "no every=0.5"),
    "never": ({"every": 0}, "never measures"),
    "a cut-off in words": ({"cutoff": "a"}, "no cutoff='a'"),
    "a negative cut-off": ({"cutoff": -1}, "no ratio is negative"),
    "by what is not": ({"by": "layer"}, "no by='layer'"),
}


@pytest.mark.parametrize("name", CALLBACK)
def test_arguments_of_the_callback(name):
    arguments, message = CALLBACK[name]
    with pytest.raises(MisconfigurationException, match=f"^AdamMiniCallback.*{message}") as caught:
        AdamMiniCallback(**arguments)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "no chain of tracebacks"


@pytest.mark.parametrize("name", MONITOR)
def test_arguments_of_the_monitor(name):
    arguments, message = MONITOR[name]
    with pytest.raises(MisconfigurationException, match=message):
        SNRMonitor(**arguments)


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "betas: one number": (lambda: ours(betas=0.9), ValueError, r"Invalid betas: 0.9, because they are two"),
    "betas: a pair of one": (lambda: ours(betas=(0.9,)), ValueError, "Invalid betas"),
    "betas: words": (lambda: ours(betas=("a", "b")), ValueError, "Invalid beta parameter at index 0: a"),
    "lr: a string": (lambda: ours(lr="1e-3"), ValueError, "Invalid learning rate: 1e-3"),
    "eps: None": (lambda: ours(eps=None), ValueError, "Invalid epsilon value: None"),
    "momentum_dtype: a list": (lambda: ours(momentum_dtype=[]), ValueError, "Invalid momentum_dtype value"),
    "layouts: a partition's name": (lambda: ours(layouts="auto"), ValueError, r"layouts='auto' are no layouts.*partition_model\(model\)"),
    "layouts: a list": (lambda: ours(layouts=["w"]), ValueError, "no layouts by parameter name"),
    "layouts: a report": (lambda: ours(layouts=inspect_model(net())), ValueError, "no layouts by parameter name"),
    "layouts: a misspelt spec": (lambda: ours(layouts={"w": "tenser"}), ValueError, r"'w' of shape \(4, 3\) cannot be read: 'tenser'"),
    "layouts: None for one": (lambda: ours(layouts={"w": None}), ValueError, "cannot be read"),
    "layouts: lines of another size": (lambda: ours(layouts={"w": "q:2x3"}), ValueError, "has 6 lines"),
    "layouts: what needs a model": (lambda: ours(layouts={"w": {"role": "query"}}), ValueError, r"partition_model\(model, overrides"),
    "layouts: a spec for a stranger": (lambda: ours(layouts={"x": "tensor"}), ValueError, "no parameter of that name.*named_parameters"),
    "layouts: a glob": (lambda: ours(layouts={"*": "tensor"}), ValueError, r"Layouts go by name; globs by partition_model\(model, overr"),
    "layouts: a misspelt name": (
        lambda: AdamMini(net().named_parameters(), layouts={"wieght": "tensor"}),
        ValueError,
        "Did you mean weight",
    ),
    "partition_model: the callback's options": (
        lambda: partition_model(net(), "adam_mini", options={"value": "whole"}),
        ValueError,
        r"Write them by name: partition_model\(model, 'adam_mini', value='whole'\)",
    ),
    "layouts: of another shape": (lambda: ours(layouts={"w": BlockLayout.whole((4, 4))}), ValueError, "but the parameter has shape"),
    "set_layouts: a name": (lambda: ours().set_layouts("auto"), ValueError, "no layouts by parameter name"),
    "params: a model": (lambda: AdamMini(net()), TypeError, r"a Linear for params. Pass model.named_parameters\(\)"),
    "params: None": (lambda: AdamMini(None), TypeError, "None for params"),
    "partition_model: a name": (lambda: partition_model("resnet18"), TypeError, "take a torch.nn.Module, not 'resnet18'"),
    "partition_model: parameters": (lambda: partition_model(net().parameters()), TypeError, "take a torch.nn.Module"),
    "partition_model: a misspelt option": (lambda: partition_model(net(), embeding="token"), ValueError, "'auto' has no option 'embeding'"),
    "partition_model: a number": (lambda: partition_model(net(), 3), ValueError, "The partition 3 is neither a name"),
    "partition_model: overrides in a string": (
        lambda: partition_model(net(), overrides="tensor"),
        ValueError,
        "Overrides are blocks by glob",
    ),
    "inspect_model: None": (lambda: inspect_model(None), TypeError, "take a torch.nn.Module, not 'None'"),
    "inspect_model: a class": (lambda: inspect_model(nn.Linear), TypeError, "Make an instance of it first"),
    "state: empty": (lambda: ours().load_state_dict({}), ValueError, "no param_groups and no state"),
    "state: None": (lambda: ours().load_state_dict(None), ValueError, "is None, and not a dict"),
    "state: a path": (lambda: ours().load_state_dict("a.ckpt"), ValueError, "Read it by torch.load first"),
    "state: a model's": (lambda: ours().load_state_dict(net().state_dict()), ValueError, "the state of a module"),
    "state: a checkpoint": (lambda: ours().load_state_dict({"optimizer_states": [{}]}), ValueError, r"its \['optimizer_states'\]\[0\]"),
    "state: SGD's": (lambda: ours().load_state_dict(state_of(SGD)), ValueError, "another kind of optimizer"),
    "state: momentum's": (lambda: ours().load_state_dict(state_of(SGD, momentum=0.9)), ValueError, "another kind of optimizer"),
    "state: of another model": (lambda: ours().load_state_dict(state_of(AdamW, (5, 3))), ValueError, "Load the state of the same model"),
    "to_adamw: None": (lambda: to_adamw_state_dict(None), ValueError, "is None, and not a dict"),
    "to_adamw: empty": (lambda: to_adamw_state_dict({}), ValueError, "no param_groups and no state"),
    "convert: a partition's name": (lambda: convert_optimizer_(AdamW(net().parameters()), "auto"), ValueError, "no layouts by"),
    "convert: a model": (lambda: convert_optimizer_(net(), {}), ValueError, "not a torch.optim.Optimizer"),
    "convert: SGD": (lambda: convert_optimizer_(SGD(net().parameters()), {}), ValueError, "pass force=True"),
    "an override of nothing": (lambda: train(AdamMiniCallback(overrides={"heat.*": "tensor"})), ValueError, "Near names: head"),
    "dims that are not there": (lambda: train(AdamMiniCallback(overrides={"*": {"dims": [7]}})), ValueError, "Dimension 7 is out of range"),
    "measuring SGD": (
        lambda: train(SNRMonitor(every=1), optimizer=lambda m: SGD(m.parameters(), lr=0.1)),
        MisconfigurationException,
        "SGD keeps none. Train with torch.optim.AdamW",
    ),
    "two callbacks": (lambda: train(AdamMiniCallback(), AdamMiniCallback()), MisconfigurationException, "2 AdamMiniCallbacks"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    call, kind, message = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdamMiniWarning)
        with pytest.raises(kind, match=message):
            call()


COMMANDS = {
    "compare's spelling": (["--partition", "adam_mini:valu=whole"], "did you mean 'value'"),
    "a misspelt partition": (["--partition", "adam-mini"], "did you mean 'adam_mini'"),
    "a misspelt option of the default": (["--option", "embeding=token"], "'auto' has no option"),
    "a misspelt override": (["--override", "weight=tenser"], "did you mean 'tensor'"),
    "half an option": (["--option", "value"], "has no name or no value"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name, capsys):
    arguments, message = COMMANDS[name]
    assert main(["inspect", "torch.nn:Identity", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_what_is_meant_is_taken():
    """A spec is a layout, and a dtype has a name."""
    optimizer = ours(layouts={"w": "tensor"}, momentum_dtype="bfloat16")
    assert optimizer.layouts == {"w": BlockLayout.whole((4, 3))}
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 3)
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["exp_avg"].dtype is torch.bfloat16
    optimizer.set_layouts({"w": {"dims": [1]}})
    assert optimizer.second_moments()["w"].shape == (4, 1)
    for spec in ("parameter", "line", "factored", "q:2x2", {"dims": [1], "crossed": [0]}):
        assert ours(layouts={"w": spec}).layouts["w"] == as_override(spec)
    assert AdamMiniCallback(momentum_dtype=torch.bfloat16).momentum_dtype is torch.bfloat16


def as_override(spec: Any) -> BlockLayout:
    """What the same spec gives to a linear layer."""
    return partition_model(nn.Linear(3, 4), "adam", overrides={"weight": spec})["weight"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: AdamMini(net().named_parameters(), layouts={"weight": "tensor"}),
        lambda: ours(layouts=None),
        lambda: ours(layouts={"w": "tensor"}).load_state_dict(state_of(AdamW)),
        lambda: partition_model(nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3))), "slim_adam_table3"),
        lambda: train(AdamMiniCallback(), optimizer=lambda model: None),
    ],
    ids=["no layout", "no layouts", "loading", "no rule", "in a fit"],
)
def test_warnings_point_at_the_users_line(call):
    with pytest.warns(AdamMiniWarning) as caught:
        call()
    told = [w for w in caught if issubclass(w.category, AdamMiniWarning)]
    assert told
    # The tests' own fit is the user's line of a fit.
    assert {w.filename for w in told} <= {__file__, fit.__code__.co_filename}
