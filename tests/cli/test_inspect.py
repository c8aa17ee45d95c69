"""``python -m lightning_adam_mini inspect`` on real models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lightning_adam_mini.cli.main import main


def run(capsys, *argv):
    status = main(["inspect", *argv])
    return status, *capsys.readouterr()


def test_table_of_a_timm_model(capsys):
    status, out, _ = run(capsys, "timm:vit_base_patch16_224")
    assert status == 0
    assert out.startswith("transformer: ")
    assert "q:12x64|k:12x64|v:12x64" in run(capsys, "timm:vit_base_patch16_224", "--format", "json")[1]
    assert "86,567,656" in out  # timm's own count of its parameters


def test_json_of_a_hugging_face_config(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96}
            | {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100}
        )
    )
    status, out, _ = run(capsys, f"hf:{path}", "--format", "json", "--partition", "adam_mini_v1")
    report = json.loads(out)
    key = report["parameters"]["model.layers.1.self_attn.k_proj.weight"]
    assert status == 0
    assert report["architecture"] == "transformer"
    assert (key["role"], key["lines"], key["blocks"]) == ("key", "k:2x8", 2)
    assert report["parameters"]["lm_head.weight"]["blocks"] == 6400


def test_own_factory_in_the_working_directory(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(3, 4))\n")
    command = [sys.executable, "-m", "lightning_adam_mini", "inspect", "mine:net"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0.weight 4x3" in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet18"], "Cannot tell what model 'resnet18' is. Write timm:NAME"),
        (["timm:resnet19"], "timm has no model 'resnet19'. Did you mean resnet1"),
        (["hf:nowhere/config.json"], "There is no file nowhere/config.json"),
        (["no.such:thing"], "There is no module 'no.such'"),
        (["torch.nn:Linaer"], "Did you mean Linear"),
        (["math:exp"], "math:exp cannot be called without arguments"),
        (["timm:resnet18", "--partition", "adam_mni"], "adam_mini"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, argv, message):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_strict_fails_where_heads_are_unknown(capsys, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(12, 12) for _ in range(4))\n"
        "        self.emb = torch.nn.Embedding(9, 12)\n"
        "    def forward(self, x):\n"
        "        x = self.emb(x)\n"
        "        return self.o_proj((self.q_proj(x) @ self.k_proj(x).mT).softmax(-1) @ self.v_proj(x))\n"
    )
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "odd:Odd", "--partition", "adam_mini", "--strict")
    assert status == 2
    assert "overrides=" in err
    status, _, err = run(capsys, "odd:Odd", "--strict")  # by neuron, for which no heads are needed
    assert status == 0
