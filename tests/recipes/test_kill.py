"""A run killed at any moment resumes from its last checkpoint and ends as if it had never been killed."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from recipes.__main__ import main

from .conftest import CONFIGS, QUIET, REPOSITORY

# A callback of the killed runs. A file that grows past RLIMIT_FSIZE ends its process by a signal of the kernel, in the middle of a write.
KILLER = """
import os, resource, signal
from lightning.pytorch.callbacks import Callback

class Killer(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == int(os.environ.get("KILL_AT_STEP", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        if trainer.global_step >= int(os.environ.get("KILL_IN_SAVE_AT_STEP", 10**9)):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["BYTES"]),) * 2)
"""

RECIPES = {  # arguments that make a config small, steps an epoch, and epochs between checkpoints
    "ddpm_digits": (["--model.channels", "[8, 16]", "--trainer.limit_train_batches", "4"], 4, 1),
    "gcn_digits": ([], 1, 2),
}


def fit(config, args, *more):
    return ["fit", "--config", str(config), *QUIET, "--trainer.max_epochs", "6", "--trainer.limit_test_batches", "1", *args, *more]


def killed(tmp_path, command, **moment):
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1", **moment}
    done = subprocess.run([sys.executable, "-m", "recipes", *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGKILL, -signal.SIGXFSZ), done.stderr
    return -done.returncode


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a system that limits the size of files")
@pytest.mark.parametrize("name", RECIPES)
def test_killed_run_resumes_and_ends_with_the_same_weights(name, tmp_path, monkeypatch):
    args, epoch, every = RECIPES[name]
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    checkpoints = next(entry for entry in config["trainer"]["callbacks"] if entry["class_path"] == "ModelCheckpoint")
    checkpoints["init_args"]["every_n_epochs"] = every
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(config))
    config["trainer"]["callbacks"].append({"class_path": "killer.Killer"})
    (tmp_path / "killed.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "killer.py").write_text(KILLER)
    folder = tmp_path / "runs" / name / "version_0" / "checkpoints"
    last = folder / "last.ckpt"

    # in the third epoch of an image recipe, between two checkpoints of a graph recipe
    first = 2 * every * epoch
    assert killed(tmp_path, fit("killed.yaml", args), KILL_AT_STEP=str(first + 1)) == signal.SIGKILL
    assert steps(last) == first

    again = fit("killed.yaml", args, "--ckpt_path", "last")
    size = last.stat().st_size // 2
    assert killed(tmp_path, again, KILL_IN_SAVE_AT_STEP=str(first + 1), BYTES=str(size)) == signal.SIGXFSZ
    assert [file.stat().st_size for file in folder.glob("*.part")] == [size]  # in the middle of the write, beside the file it replaces
    assert steps(last) == first

    assert main(fit("whole.yaml", args, "--ckpt_path", "last")) == 0
    resumed = torch.load(last, weights_only=True)
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]

    (tmp_path / "uninterrupted").mkdir()
    monkeypatch.chdir(tmp_path / "uninterrupted")
    assert main(fit(tmp_path / "whole.yaml", args)) == 0
    whole = torch.load(next((tmp_path / "uninterrupted").rglob("last.ckpt")), weights_only=True)
    assert resumed["global_step"] == whole["global_step"] == 6 * epoch
    assert resumed["state_dict"].keys() == whole["state_dict"].keys()
    assert [key for key, value in whole["state_dict"].items() if not torch.equal(value, resumed["state_dict"][key])] == []


def steps(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]
