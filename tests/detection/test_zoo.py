"""The zoo of models whose layouts were read from their forward code.

``ZOO`` is its folder; all of it is scored if ``ZOO_ALL`` is set, else a part, to be quick.
"""

import gzip
import importlib
import json
import os
import sys
import warnings
from pathlib import Path

import pytest

ZOO = Path(os.environ.get("ZOO", Path(__file__).parents[3] / "shared" / "zoo"))
PART = {
    "levit_128s",
    "davit_tiny",
    "coatnet_0_224",
    "vit_dwee_patch16_reg1_gap_256",
    "efficientvit_m0",
    "mobilenetv4_conv_small",
    "sequencer2d_s",
    "bert",
    "deberta",
    "gpt_neox",
    "codegen",
    "qwen3_next",
    "gpt_oss",
    "t5-v1.1",
    "wav2vec2-conformer",
    "squeezebert",
    "rwkv",
    "AutoencoderKLWan",
    "Flux2",
    "Lumina2",
    "karpathy-per-head",
    "obscure-gqa",
    "detr-like",
    "lucidrains-Unet",
    "litgpt-mqa",
    "peft-lora-llama",
    "pyg-HGT",
    "pyg-AttentiveFP",
}


def test_models_of_the_zoo_are_right():
    if not (ZOO / "truth.json.gz").exists():
        pytest.skip(f"the zoo is not at {ZOO}; name its folder in the environment variable ZOO")
    from tests.zoo_adapter import detect

    sys.path.insert(0, str(ZOO))
    try:
        score, models = importlib.import_module("score"), importlib.import_module("models")
    finally:
        sys.path.remove(str(ZOO))
    wrong, seen = [], 0
    for entry in json.loads(gzip.decompress((ZOO / "truth.json.gz").read_bytes()))["models"]:
        if entry["model"] not in PART and "ZOO_ALL" not in os.environ:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = models.build(entry)
        except ImportError:
            continue
        seen += 1
        found = detect(model)
        judged = [(name, score.judge(truth, found.get(name))) for name, truth in entry["params"].items()]
        bad = [name for name, verdict in judged if not all(ok for kind, ok in verdict.items() if kind != "coarse")]
        wrong += [f"{entry['model']}: {bad[0]} and {len(bad) - 1} more"] if bad else []
    if not seen:
        pytest.skip("no library of the zoo is installed: timm, transformers, diffusers, torch-geometric, ...")
    assert len(wrong) <= 0.01 * seen, wrong
