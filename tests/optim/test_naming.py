"""Names of wrapped models and keys of layouts, as strings; ``tests/detection/test_names.py`` has real wrappers."""

from __future__ import annotations

import random

import pytest

from lightning_adam_mini.optim.naming import WRAPPED, match_names

KEYS = ["body.0.weight", "body.0.bias", "head.weight"]


def wrapped(nested, chance, rng, name="", key=""):
    """The names of a nested dict of parameters with wrappers put in at random, with the names without."""
    if nested is None:
        yield name, key
        return
    while rng.random() < chance:
        name = f"{name}.{rng.choice(WRAPPED)}".lstrip(".")
    for part, inner in nested.items():
        yield from wrapped(inner, chance, rng, f"{name}.{part}".lstrip("."), f"{key}.{part}".lstrip("."))


def model(rng, depth):
    """Modules and parameters, of which many are called like wrappers'."""
    parts = rng.sample(["a", "0", *WRAPPED], rng.randint(1, 3))
    return {part: model(rng, depth - 1) if depth and rng.random() < 0.7 else None for part in parts}


@pytest.mark.parametrize("seed", range(300))
def test_all_names_of_a_model(seed):
    rng = random.Random(seed)
    truth = dict(wrapped(model(rng, rng.randint(1, 4)), rng.choice([0, 0.1, 0.5]), rng))
    assert match_names(truth, truth.values()) == truth
    back = {key: name for name, key in truth.items()}
    assert match_names(back, back.values()) == back
    assert match_names(truth, {*truth.values(), "other.weight", "other.bias"}) == truth
    # Fewer may be read in two ways, but never two of them in the same way.
    some = rng.sample(sorted(truth), rng.randint(1, len(truth)))
    keys: dict[str, str] = {}
    for name in some:
        keys |= match_names([name], truth.values(), keys)
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_forward_module.module._orig_mod.", "module.module."])
def test_a_group_at_a_time_is_as_all_at_once(prefix):
    keys: dict[str, str] = {}
    for key in KEYS:
        keys |= match_names([prefix + key], KEYS, keys)
    assert keys == match_names(keys, KEYS) == {prefix + key: key for key in KEYS}


def test_a_later_group_follows_the_wrapper_that_the_first_showed():
    known = ["0.weight", "1.weight", "module.0.weight", "module.1.weight"]
    first = match_names(["module.0.weight", "module.module.0.weight"], known)
    assert first == {"module.0.weight": "0.weight", "module.module.0.weight": "module.0.weight"}
    assert match_names(["module.1.weight"], known, first) == {"module.1.weight": "1.weight"}
    assert match_names(["module.module.1.weight"], known, first) == {"module.module.1.weight": "module.1.weight"}


def test_a_first_group_that_shows_nothing_decides_nothing():
    first = match_names(["loss.scale"], KEYS)
    assert first == {}
    assert match_names(["module.head.weight"], KEYS, first) == {"module.head.weight": "head.weight"}


def test_parameters_of_other_modules_beside():
    names = ["_orig_mod." + key for key in KEYS]
    expected = dict(zip(names, KEYS, strict=True))
    assert match_names([*names, "loss.scale", "temperature"], KEYS) == expected
    # One whose name is another's key has none: the layout is not for it.
    assert match_names([*names, "head.weight"], KEYS) == expected
    assert match_names(["head.weight"], KEYS, expected) == {}
    assert match_names(["loss.scale"], KEYS, expected) == {}


def test_frozen_parameters_that_are_not_given_leave_the_rest_as_it_is():
    assert match_names(["module.body.0.bias"], KEYS) == {"module.body.0.bias": "body.0.bias"}


def test_a_parameter_that_is_called_like_a_wrapper():
    assert match_names(["module", "_orig_mod"], ["module", "_orig_mod"]) == {"module": "module", "_orig_mod": "_orig_mod"}
    assert match_names(["_orig_mod.module"], ["module"]) == {"_orig_mod.module": "module"}


def test_keys_that_are_there_no_more_decide_nothing():
    assert match_names(["_orig_mod.head.weight"], KEYS, {"old": "gone"}) == {"_orig_mod.head.weight": "head.weight"}


@pytest.mark.parametrize(("names", "known"), [([], KEYS), (KEYS, []), (["encoder.weight"], KEYS), (["param_groups.0.params.3"], KEYS)])
def test_nothing_fits(names, known):
    assert match_names(names, known) == {}


def test_thousands_of_names_take_no_longer_than_reading_them():
    keys = [f"layers.{i}.{part}.weight" for i in range(500) for part in "qkvo"]
    names = ["module._orig_mod." + key.replace(".q.", ".q._checkpoint_wrapped_module.") for key in keys]
    assert match_names(names, keys) == dict(zip(names, keys, strict=True))
    deep = ".".join(["module"] * 12)
    assert match_names([f"module.{deep}.weight", "module.weight"], [f"{deep}.weight", "weight"]) == {
        f"module.{deep}.weight": f"{deep}.weight",
        "module.weight": "weight",
    }
