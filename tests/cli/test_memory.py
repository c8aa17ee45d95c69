"""``python -m lightning_adam_mini memory`` on real models."""

from __future__ import annotations

import json
import math
import sys

import pytest
import timm

from lightning_adam_mini.cli import memory
from lightning_adam_mini.cli.main import main

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100}


def run(capsys, *argv):
    status = main(["memory", *argv])
    return status, *capsys.readouterr()


def optimizers(out):
    return {(o["optimizer"], o["partition"]): o for o in json.loads(out)["optimizers"]}


def config(tmp_path, **values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | values))
    return f"hf:{path}"


def test_table_of_a_timm_model(capsys):
    status, out, _ = run(capsys, "timm:resnet18")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("ResNet, cnn: ")
    assert "11,689,512 in 62 tensors (float32)" in out  # timm's own count
    adamw = next(line for line in lines if line.startswith("AdamW (torch)"))
    assert f"{8 * 11_689_512 + 4 * 62:,}" in adamw
    v2 = next(line for line in lines if line.startswith("AdamMini adam_mini "))
    assert f"{4 * 11_689_512 + 8 * 62:,}" in v2
    assert "50.00 %" in v2
    assert max(map(len, lines)) <= 120


def test_json_of_a_hugging_face_config(capsys, tmp_path):
    status, out, _ = run(capsys, config(tmp_path), "--format", "json")
    found, rows = json.loads(out), optimizers(out)
    assert status == 0
    n = found["parameters"]
    assert n == 2 * 100 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 96 + 2 * 64) + 64
    assert found["parameter_bytes"] == found["gradient_bytes"] == 4 * n
    assert rows["AdamW", None]["state_bytes"] == 8 * n + 4 * found["tensors"]
    # Two tables by token; queries and keys by head; values, projection and MLP by neuron; norms by tensor.
    assert rows["AdamMini", "adam_mini"]["second_moments"] == 2 * 100 + 2 * (8 + 2 + 16 + 64 + 96 + 96 + 64 + 2) + 1
    # The embedding by token, norms by element, all else by row and column.
    layer = (64 + 64) + 2 * (16 + 64) + (64 + 64) + 3 * (96 + 64) + 2 * 64
    assert rows["AdamMini", "auto"]["second_moments"] == 100 + (100 + 64) + 2 * layer + 64
    assert rows["AdamMini", "adam_mini_v1"]["second_moments"] == 2 * 6400 + 2 * (8 + 2 + 5 + 2) + 1
    assert list(rows) == [("SGD", None), ("AdamW", None)] + [
        ("AdamMini", p) for p in ("auto", "adam_mini", "adam_mini_v1", "adalayer", "adalayer_ln_tl", "adam")
    ]


def test_a_configuration_in_bfloat16_counts_so_unless_told_otherwise(capsys, tmp_path):
    spec = config(tmp_path, torch_dtype="bfloat16")
    _, own, _ = run(capsys, spec, "--format", "json")
    _, told, _ = run(capsys, spec, "--format", "json", "--dtype", "float32")
    n = json.loads(own)["parameters"]
    assert json.loads(own)["dtypes"] == {"bfloat16": n}
    assert json.loads(own)["parameter_bytes"] == 2 * n
    assert json.loads(told)["parameter_bytes"] == 4 * n
    tensors = json.loads(own)["tensors"]
    assert optimizers(own)["AdamMini", "adam"]["state_bytes"] == 2 * n + 4 * n + 4 * tensors  # second moments stay float32
    assert optimizers(own)["AdamW", None]["state_bytes"] == 4 * n + 4 * tensors


@pytest.mark.parametrize("momentum", ["float32", "bfloat16", "8bit"])
def test_momentum_dtype(capsys, momentum):
    _, out, _ = run(capsys, "timm:resnet18", "--format", "json", "--momentum-dtype", momentum)
    row = optimizers(out)["AdamMini", "adam_mini"]
    parameters = list(timm.create_model("resnet18").parameters())
    sizes = [p.numel() for p in parameters]
    rows = [(len(p), p.numel() // len(p)) for p in parameters]
    narrow = sum(n * m + 4 * n * math.ceil(m / 256) if n * m >= 4096 else 4 * n * m for n, m in rows)
    assert row["momentum_bytes"] == {"float32": 4 * sum(sizes), "bfloat16": 2 * sum(sizes), "8bit": narrow}[momentum]
    assert (row["momentum_dtype"], optimizers(out)["AdamW", None]["momentum_dtype"]) == (momentum, None)


def test_chosen_partitions_once_each(capsys):
    _, out, _ = run(capsys, "timm:resnet18", "--format", "json", "--partition", "adam", "--partition", "tensor", "--partition", "adam")
    assert [p for o, p in optimizers(out) if o == "AdamMini"] == ["adam", "tensor"]


def test_own_factory_with_frozen_and_tied_parameters(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 2))\n"
        "    net[1].weight = net[0].weight\n"
        "    net[2].requires_grad_(False)\n"
        "    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "mine:net")
    sys.modules.pop("mine", None)
    assert status == 0
    assert "82 in 3 tensors" in out
    assert "64 in 1 tensor\n" in out
    assert "2 tensors (18 parameters) frozen" in out
    assert "Tied, counted once: 0.weight = 1.weight." in out


def test_a_model_without_parameters(capsys):
    status, out, _ = run(capsys, "torch.nn:Identity")
    assert status == 0
    assert "0 in 0 tensors" in out


def test_the_papers_tables(capsys, monkeypatch):
    pytest.importorskip("transformers")
    status, out, _ = run(capsys, "--paper")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 140
    v1 = [line.split() for line in out.splitlines() if "Adam-mini v1" in line]
    assert [row[2] for row in v1][:3] == ["6.56", "4.92", "28.04"]
    assert all(abs(float(row[4])) <= 0.5 for row in v1[:3])
    monkeypatch.setattr(memory, "PAPER_MODELS", [model for model in memory.PAPER_MODELS if model.name in ("Llama2-7B", "Llama3-8B")])
    _, out, _ = run(capsys, "--paper", "--format", "json")
    found = {c["model"]: c for c in json.loads(out)}
    assert found["Llama2-7B"]["paper"]["adam_mini_v1_gb"] == 28.04
    assert found["Llama2-7B"]["state_bytes"]["Adam-mini v1"] == pytest.approx(28.00e9, rel=1e-3)
    assert found["Llama3-8B"]["paper"]["adamw_gb"] is None


def test_the_papers_tables_need_transformers(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, out, err = run(capsys, "--paper")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "pip install transformers" in err


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_library_that_is_missing_is_named(capsys, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    status, _, err = run(capsys, "timm:resnet18" if library == "timm" else "hf:config.json")
    assert status == 2
    assert f"pip install {library}" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet18"], "Cannot tell what model 'resnet18' is. Write timm:NAME"),
        (["timm:resnet19"], "timm has no model 'resnet19'. Did you mean resnet1"),
        (["timm:resnet18.no_such_weights"], "resnet18.no_such_weights cannot be built"),
        (["hf:nowhere/config.json"], "There is no file nowhere/config.json"),
        (["no.such:thing"], "There is no module 'no.such'"),
        (["timm:resnet18", "--partition", "adam_mni"], "The partition 'adam_mni' is unknown (did you mean 'adam_mini'?)"),
        (["no.such:thing", "--partition", "nope"], "The partition 'nope' is unknown"),
        (["--paper", "--momentum-dtype", "8bit"], "--momentum-dtype does not go with --paper"),
        (["--paper", "--partition", "adam"], "--partition does not go with --paper"),
        (["torch.nn:LazyBatchNorm1d"], "lazy"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, argv, message):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "it has no model_type"),
        (json.dumps(LLAMA | {"model_type": "lama"}), "its model_type is 'lama'. Did you mean llama"),
        (json.dumps(LLAMA | {"hidden_size": "wide"}), "cannot be built on the meta device"),
        (json.dumps(LLAMA | {"hidden_size": 65}), "not a multiple of the number of attention heads"),
        (json.dumps(LLAMA | {"num_attention_heads": 0}), "ZeroDivisionError"),
        (json.dumps(LLAMA | {"hidden_act": "nope"}), "'nope'"),
    ],
)
def test_a_configuration_that_cannot_be_built(capsys, tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    status, out, err = run(capsys, f"hf:{path}")
    assert (status, out) == (2, "")
    assert "config.json" in err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["timm:resnet18", "--paper"], ["timm:resnet18", "--dtype", "int8"]])
def test_arguments_that_do_not_parse(capsys, argv):
    with pytest.raises(SystemExit) as exit_:
        run(capsys, *argv)
    assert exit_.value.code == 2
