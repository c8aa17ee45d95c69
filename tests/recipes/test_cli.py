import os
import re
import subprocess
import sys

import pytest
import torch
import yaml

from recipes.__main__ import main
from recipes.graph import NodeClassifier

from .conftest import CONFIGS, NARROW, QUIET

DIGITS = str(CONFIGS / "resnet18_digits.yaml")
ONE_BATCH = ["--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"]
TWO_STEPS = ["--trainer.max_steps", "2", *ONE_BATCH]


ELSEWHERE = {"reward_topics", "remax_topics"}  # in test_remax.py, because they go on from each other


@pytest.mark.parametrize(
    "config", [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem not in ELSEWHERE], ids=lambda path: path.stem
)
def test_every_config_trains_for_two_steps(config, tiny_recipe, tmp_path, capsys, request):
    if config.stem in ("gpt_stdlib_lora", "sft_topics"):
        request.getfixturevalue("pretrained")
    if "zero" in config.stem:
        pytest.importorskip("deepspeed")
    if "fsdp" in config.stem or "zero" in config.stem:  # Lightning starts the command that it runs in once more, as the second process
        command = [sys.executable, "-m", "recipes", "fit", "--config", str(config), *TWO_STEPS]
        environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}  # two that wait for each other busily
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        out = done.stdout
    else:
        assert main(["fit", "--config", str(config), *tiny_recipe[config.stem], *TWO_STEPS]) == 0
        out = capsys.readouterr().out

    last = out.strip().splitlines()[-1]
    found = re.fullmatch(
        r"log: (\S+) \| test (\w+): [\d.]+ \| optimizer state: [\d.]+ MB, AdamW's would be [\d.]+ MB \([\d.]+ % saved\)", last
    )
    assert found, last
    assert list((tmp_path / found[1]).glob("events.out.tfevents.*"))
    assert (tmp_path / found[1] / "config.yaml").is_file()


def test_memory_in_the_last_line_is_half_of_adamw(capsys):
    main(
        [
            "fit",
            "--config",
            DIGITS,
            *QUIET,
            *ONE_BATCH,
            "--trainer.max_steps",
            "1",
            "--data.batch_size",
            "2",
        ]
    )
    saved = re.search(r"([\d.]+) % saved", capsys.readouterr().out)
    assert saved is not None
    assert float(saved[1]) >= 49.9


def test_without_the_callback_it_is_plain_adamw(capsys):
    assert main(["fit", "--config", DIGITS, *NARROW, *QUIET, "--trainer.callbacks", "null", *TWO_STEPS]) == 0
    assert re.search(r"optimizer state: [\d.]+ MB$", capsys.readouterr().out.strip())


def test_fast_dev_run_without_logger(capsys):
    assert main(["fit", "--config", DIGITS, *NARROW, *QUIET, "--trainer.fast_dev_run", "true"]) == 0
    assert "log: none" in capsys.readouterr().out


def test_resume_from_last_goes_on_in_the_same_log(tmp_path):
    args = ["fit", "--config", DIGITS, *NARROW, *QUIET, *ONE_BATCH, "--trainer.limit_train_batches", "2"]
    assert main([*args, "--trainer.max_epochs", "1"]) == 0
    assert main([*args, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0

    runs = list((tmp_path / "runs" / "resnet18_digits").iterdir())
    assert [run.name for run in runs] == ["version_0"]
    newest = max(runs[0].glob("checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest, weights_only=True)["global_step"] == 4


def test_test_command_measures_a_checkpoint(tmp_path, capsys):
    assert main(["fit", "--config", DIGITS, *NARROW, *QUIET, "--trainer.max_steps", "2"]) == 0
    reached = re.search(r"test accuracy: ([\d.]+)", capsys.readouterr().out)
    checkpoint = next((tmp_path / "runs/resnet18_digits/version_0/checkpoints").glob("last.ckpt"))
    assert main(["test", "--config", DIGITS, *NARROW, *QUIET, "--ckpt_path", str(checkpoint)]) == 0
    shown = re.search(r"test/acc\W+([\d.]+)", capsys.readouterr().out)
    assert reached is not None
    assert shown is not None
    assert float(shown[1]) == pytest.approx(float(reached[1]), abs=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.num_classes", "7"], "The model has 7 classes but the data have 10; set --model.num_classes 10."),
        (["--model.name", "resnt18"], "timm has no model called 'resnt18'"),
        (
            ["--model.name", "vit_tiny_patch16_224", "--model.model_args", "null"],
            "small_images replaces the `conv1` and `maxpool` of a ResNet",
        ),
        (["--model.model_args", "{chanels: 3}"], "timm's resnet18 does not take --model.model_args"),
        (["--model.warmup", "1.5"], "Invalid warmup value: 1.5"),
        (["--model.lr=-1"], "error: Invalid learning rate: -1"),
        (["--ckpt_path", "nope.ckpt"], "error: There is no checkpoint nope.ckpt"),
    ],
)
def test_a_mistake_is_one_clear_error(args, message, capsys):
    assert main(["fit", "--config", DIGITS, *QUIET, "--trainer.max_steps", "1", *args]) == 1
    assert message in capsys.readouterr().err


def test_fit_without_a_configuration(capsys):
    assert main(["fit"]) == 2
    assert capsys.readouterr().err.startswith("error: fit needs a configuration, such as --config configs/resnet18_digits.yaml")


def test_a_mistake_in_the_callbacks_options_is_one_clear_error(tmp_path, capsys):
    config = yaml.safe_load((CONFIGS / "gcn_digits.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"] = {"overrides": {"no.such.parameter": "tensor"}}
    (tmp_path / "mistaken.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "mistaken.yaml", *QUIET, "--trainer.max_steps", "1"]) == 1
    error = capsys.readouterr().err
    assert "no.such.parameter" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_an_error_of_a_model_keeps_its_traceback(monkeypatch):
    def broken(self, batch, batch_idx):
        raise ValueError("a defect, not a mistake")

    monkeypatch.setattr(NodeClassifier, "training_step", broken)
    with pytest.raises(ValueError, match="a defect"):
        main(["fit", "--config", str(CONFIGS / "gcn_digits.yaml"), *QUIET, "--trainer.max_steps", "1"])


def test_missing_data_root_says_what_was_looked_for(capsys):
    assert main(["fit", "--config", str(CONFIGS / "resnet18_imagenet.yaml"), *NARROW, *QUIET, "--data.root", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "looked for the folder nowhere/train" in error
    assert "nowhere/train/<class>/*.JPEG" in error


def test_help_names_every_command_and_explains_arguments(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(command in overview for command in ("fit", "validate", "test", "predict", "sample"))
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.help", "ImageClassifier"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Peak learning rate." in text
    assert main(["train"]) == 2
    assert "there is no command 'train'" in capsys.readouterr().err


def test_print_config_is_a_config(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", DIGITS, "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert main(["fit", "--config", str(printed), *NARROW, *QUIET, "--trainer.max_steps", "1"]) == 0


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        ("gcn_digits", "DigitsData", "NodeClassifier learns from a graph, but DigitsData gives images with labels"),
        ("resnet18_digits", "DigitImages", "ImageClassifier learns from images with labels, but DigitImages gives images without labels"),
        ("gpt_stdlib", "DigitsData", "GPTModel learns from text, but DigitsData gives images with labels"),
        ("ddpm_digits", "DigitsData", "NoisePredictor learns from images without labels, but DigitsData gives images with labels"),
    ],
)
def test_data_of_another_recipe_are_refused(config, data, message, capsys):
    assert main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), "--data", data]) != 0
    assert message in capsys.readouterr().err
