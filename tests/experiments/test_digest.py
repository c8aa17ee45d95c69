"""A comparison tells recipes apart by what they say, not by how they are written."""

import pytest
import yaml

from experiments.__main__ import main
from experiments.compare.digest import recipe_digest
from experiments.compare.plan import Plan
from tests.recipes.conftest import CONFIGS, NARROW

CONFIG = CONFIGS / "gpt_stdlib.yaml"


def digest(*overrides, config=CONFIG):
    return recipe_digest(["--config", str(config), *overrides])


@pytest.fixture(scope="module")
def plain():
    return digest()


def reversed_keys(value):
    return {key: reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def test_equal_recipes_are_equal_however_they_are_written(tmp_path, plain):
    config = yaml.safe_load(CONFIG.read_text())
    assert config["model"]["init_args"]["lr"] == 3e-3
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(reversed_keys(config), sort_keys=False))
    assert digest(config=tmp_path / "other.yaml") == plain
    assert digest("--model.lr", "0.003") == digest("--model.lr=3e-3") == plain  # what the configuration has
    assert digest("--trainer.max_epochs=2") == digest("--trainer.max_epochs", "2") != plain
    assert digest("--model.lr", "4e-3", "--model.layers", "2") == digest("--model.layers=2", "--model.lr=0.004") != plain
    assert digest("--seed_everything", "5") == plain  # which a comparison sets


def test_a_file_counts_by_its_content(tmp_path, plain):
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"]["callbacks"] = [
        {"class_path": "AdamMiniCallback", "init_args": {"partition": "slim_adam", "options": {"rules": "a.yaml"}}}
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "a.yaml").write_text("one")
    one = digest(config=tmp_path / "config.yaml")
    (tmp_path / "a.yaml").write_text("another")
    assert digest(config=tmp_path / "config.yaml") != one
    (tmp_path / "b.yaml").write_text("one")
    moved = (tmp_path / "config.yaml").read_text().replace("a.yaml", "b.yaml")
    (tmp_path / "config.yaml").write_text(moved)
    assert digest(config=tmp_path / "config.yaml") == one


def test_rules_of_an_optimizer_count_by_their_content(tmp_path):
    rules = tmp_path / "rules.yaml"
    plan = Plan(CONFIG, (), tmp_path, ("adamw", f"slim_adam:rules={rules}"), (0,))
    rules.write_text("one")
    found = [plan.fingerprint(name) for name in plan.optimizers]
    rules.write_text("two")
    assert [plan.fingerprint(name) == before for name, before in zip(plan.optimizers, found, strict=True)] == [True, False]


def test_a_comparison_notices_other_rules(tmp_path, capsys):
    from lightning_adam_mini.partition import Rule, SlimAdamRules

    def write(rule):
        rules = dict.fromkeys(("conv_4d", "first_conv_4d"), rule) | {"classifier": Rule((1,))}
        SlimAdamRules("layer_type", rules).save(tmp_path / "rules.yaml")

    small = ["--config", str(CONFIGS / "resnet18_digits.yaml"), "--out", "out", "--small", *NARROW, "--seeds", "1"]
    command = ["compare", *small, "--optimizers", "slim_adam:rules=rules.yaml"]
    write(Rule((1, 2, 3)))
    assert main(command) == 0
    assert main([*command, "--trainer.max_steps", "4"]) == 0  # what --small says
    assert "1 of 1 runs were finished before" in capsys.readouterr().out
    write(Rule((0, 2, 3)))
    assert main(command) == 1
    assert "or with other contents of the files that they name" in capsys.readouterr().err
