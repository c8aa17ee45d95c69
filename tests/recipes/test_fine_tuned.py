import math
import re

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_adam_mini import inspect_model
from recipes.__main__ import main
from recipes.language import FineTunedModel, HuggingFaceModel
from recipes.language.fine_tuned import add_adapters

from .conftest import CONFIGS, QUIET, TINY_TEXT

LORA = ["fit", "--config", str(CONFIGS / "gpt_stdlib_lora.yaml"), *TINY_TEXT, *QUIET, "--trainer.max_steps", "3"]
LAST = "runs/gpt_stdlib_lora/version_0/checkpoints/last.ckpt"


def weights(file):
    return torch.load(file, weights_only=True)["state_dict"]


def test_adapters_alone_train_and_have_state(pretrained, capsys):
    assert main(LORA) == 0
    before, after = weights(pretrained), weights(LAST)
    adapters = {name for name in after if ".lora_" in name}
    assert len(adapters) == 2 * 6  # q, k, v, projection, up and down
    plain = {name.removeprefix("base.").replace(".base_layer", ""): value for name, value in after.items() if name not in adapters}
    assert plain.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in plain.items())  # to the bit
    assert all(value.abs().sum() > 0 for name, value in after.items() if name in adapters)  # B starts at zero
    elements = sum(after[name].numel() for name in adapters)
    state = torch.load(LAST, weights_only=True)["optimizer_states"][0]
    assert sum(one["exp_avg"].numel() for one in state["state"].values()) == elements
    said = re.search(r"AdamW's would be ([\d.]+) MB", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) == pytest.approx(8 * elements / 1e6, abs=0.006)


def test_full_fine_tuning_changes_all_weights(pretrained):
    assert main([*LORA, "--model.lora_rank", "0"]) == 0
    before, after = weights(pretrained), weights(LAST)
    assert {f"base.{name}" for name in before} == set(after)
    trained = [name for name in before if "perplexity" not in name]
    assert not any(torch.equal(before[name], after[f"base.{name}"]) for name in trained)


def test_a_fresh_adapter_changes_nothing(pretrained):
    plain, adapted = FineTunedModel(str(pretrained)), FineTunedModel(str(pretrained), lora_rank=4).eval()
    tokens = torch.randint(256, (2, 16))
    torch.testing.assert_close(adapted(tokens), plain.eval()(tokens))


def test_blocks_of_the_adapters(pretrained):
    report = inspect_model(FineTunedModel(str(pretrained), lora_rank=4))
    attention = "base.net.blocks.0.attn"
    assert report.by_name[f"{attention}.q_proj.lora_B.default.weight"].lines == "q:4x16"
    assert report.by_name[f"{attention}.k_proj.lora_B.default.weight"].lines == "k:4x16"
    assert report.by_name[f"{attention}.q_proj.lora_A.default.weight"].role.value == "lora_a"
    assert not any(parameter.guess for parameter in report.parameters)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_linear_layer_but_the_output_layer_of_hugging_faces_models_is_adapted(kind):
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4}
    if kind == "llama":
        sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    model = HuggingFaceModel({"model_type": kind, **sizes}, vocab_size=50, context=16)
    add_adapters(model.net, rank=2, alpha=4.0, dropout=0.0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert len(trained) == 2 * 2 * {"gpt2": 4, "llama": 7}[kind]
    assert not any("lm_head" in name or "wte" in name or "embed" in name for name in trained)
    loss = model(torch.zeros(1, 8, dtype=torch.int64)).logsumexp(-1).sum()
    assert math.isfinite(loss.item())


def test_mistakes(pretrained, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"There is no checkpoint nowhere\.ckpt; make one with .*gpt_stdlib\.yaml"):
        FineTunedModel("nowhere.ckpt")
    with pytest.raises(MisconfigurationException, match="Invalid lora_rank value: -1"):
        FineTunedModel(str(pretrained), lora_rank=-1)
    torch.save({"hyper_parameters": {"name": "resnet18", "_class_path": "recipes.vision.ImageClassifier"}}, tmp_path / "other.ckpt")
    with pytest.raises(MisconfigurationException, match="a checkpoint of ImageClassifier, not of this version's GPTModel or Hugging"):
        FineTunedModel("other.ckpt")
