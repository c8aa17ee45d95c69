"""``python -m lightning_adam_mini inspect`` on real models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMiniWarning
from lightning_adam_mini.cli.main import main


class GateAttention(nn.Module):
    """Attention by its name only: two matrices and a softmax that weighs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x).softmax(-1) * self.two(x)


def gated() -> nn.Module:
    return nn.Sequential(GateAttention(), nn.Linear(8, 2))


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
        (["timm:resnet18", "--option", "valeu=whole"], "'auto' has no option 'valeu'"),
        (["timm:resnet18", "--option", "value"], "'value' has no name or no value. Write NAME=VALUE."),
        (["torch.nn:Identity", "--override", "fc.*=tensor"], "The override 'fc.*' matches no parameter"),
        (["timm:resnet18", "--override", 'fc.*={"role": query}'], "The override of 'fc.*' is not JSON"),
        (["timm:resnet18", "--example", "1x3xlarge"], "Cannot tell what example '1x3xlarge' is"),
        (["timm:resnet18", "--example", "1x3x64x64:flaot32"], "Cannot tell what example '1x3x64x64:flaot32' is"),
        (["timm:resnet18", "--example", "1x4x64x64"], "Cannot probe ResNet because it does not run on the example"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, argv, message):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


ODD = """
import torch
class Odd(torch.nn.Module):  # two heads that no attribute declares, keys where queries are expected
    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(9, 12)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(12, 12) for _ in range(4))
    def forward(self, ids, /, *, scale):
        x = self.emb(ids)
        k, q, v = (p(x).unflatten(-1, (2, 6)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(((q @ k.mT * scale.softmax(-1).sum()).softmax(-1) @ v).transpose(1, 2).flatten(2))
class Called(Odd):
    def forward(self, ids):
        return super().forward(ids, scale=torch.ones(1))
def example():
    return (torch.zeros(2, 5, dtype=torch.long),)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("odd", None)


def parameters(out):
    return json.loads(out)["parameters"]


@pytest.mark.usefixtures("odd")
def test_strict_fails_where_heads_are_unknown(capsys):
    status, _, err = run(capsys, "odd:Odd", "--partition", "adam_mini", "--strict", "--no-probe")
    assert status == 2
    assert "overrides=" in err
    status, _, err = run(capsys, "odd:Odd", "--strict")  # rows and columns, for which no heads are needed
    assert status == 0


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("example", ["2x5:int64", "odd:example"])
def test_an_example_shows_the_heads(capsys, example):
    status, out, _ = run(capsys, "odd:Called", "--partition", "adam_mini", "--format", "json", "--example", example, "--strict")
    found = parameters(out)
    assert status == 0
    assert [(found[f"{n}_proj.weight"]["lines"], found[f"{n}_proj.weight"]["blocks"]) for n in "qk"] == [("k:2x6", 2), ("q:2x6", 2)]
    assert {found["q_proj.weight"]["source"], found["emb.weight"]["source"]} == {"evidence", "structure"}
    assert "running showed k:2x6" in found["q_proj.weight"]["reason"]


@pytest.mark.usefixtures("odd")
def test_without_a_probe_json_says_what_is_a_guess(capsys):
    with pytest.warns(AdamMiniWarning, match="heads"):
        _, out, _ = run(capsys, "odd:Odd", "--partition", "adam_mini", "--format", "json", "--no-probe")
    found = json.loads(out)
    assert [found["parameters"][f"{n}_proj.weight"]["guess"] for n in "qk"] == [True, True]
    assert (found["architecture"], found["guess"]) == ("transformer", False)
    with pytest.warns(AdamMiniWarning, match="network"):
        _, out, _ = run(capsys, "tests.cli.test_inspect:gated", "--partition", "adam_mini", "--format", "json", "--no-probe")
    assert json.loads(out)["guess"] is True


@pytest.mark.usefixtures("odd")
def test_options_and_overrides_reach_the_partition(capsys):
    argv = ["odd:Odd", "--partition", "adam_mini", "--format", "json", "--no-probe", "--option", "value=whole"]
    argv += [
        "--override",
        "q_proj.weight=k:2x6",
        "--override",
        'k_proj.weight={"role": "query", "heads": 3}',
        "--override",
        "o_proj.*=tensor",
    ]
    status, out, _ = run(capsys, *argv, "--override", "v_proj.weight=v:2x6")
    found = parameters(out)
    assert status == 0
    assert [found[f"{n}_proj.weight"]["blocks"] for n in "qkvo"] == [2, 3, 1, 1]
