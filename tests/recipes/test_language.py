import itertools
import math
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_adam_mini import inspect_model
from recipes.__main__ import main
from recipes.language import GPTModel, HuggingFaceModel, PythonText, TextFolder, TokenFiles
from recipes.language.gpt import GPT, rotary_angles, rotate
from recipes.language.text import split_documents

from .conftest import CONFIGS, QUIET, TINY_GPT, TINY_TEXT

STDLIB = str(CONFIGS / "gpt_stdlib.yaml")
VARIANTS = list(itertools.product((None, 2, 1), ("learned", "rotary"), (True, False), (False, True), (False, True)))


def gpt(*variant, context=16, **arguments):
    names = ("kv_heads", "positions", "tied", "fused_qkv", "bias")
    return GPT(vocab_size=50, context=context, layers=2, heads=4, width=32, **dict(zip(names, variant, strict=True)), **arguments)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_head_of_every_variant_is_found_without_an_override(variant):
    kv_heads, positions, tied, fused, _ = variant
    report = inspect_model(gpt(*variant))
    k = 4 if kv_heads is None else kv_heads
    expected = {"qkv_proj": f"q:4x8|k:{k}x8|v:{k}x8"} if fused else {"q_proj": "q:4x8", "k_proj": f"k:{k}x8"}
    for layer in range(2):
        for name, lines in expected.items():
            assert report.by_name[f"blocks.{layer}.attn.{name}.weight"].lines == lines
    roles = {parameter.role.value for parameter in report.parameters}
    assert not any(parameter.guess for parameter in report.parameters)
    assert {"token_embedding", "attn_out", "mlp_up", "mlp_down", "norm"} <= roles
    assert ("lm_head" in roles) == (not tied)
    assert ("position_embedding" in roles) == (positions == "learned")


def test_a_token_sees_those_before_it_alone():
    torch.manual_seed(0)
    for variant in VARIANTS[::5]:
        net = gpt(*variant).eval()
        tokens = torch.randint(50, (1, 12))
        changed = tokens.clone()
        changed[0, 7] = (changed[0, 7] + 1) % 50
        before, after = net(tokens), net(changed)
        torch.testing.assert_close(before[:, :7], after[:, :7])
        assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=-1).min() > 1e-6


def test_attention_written_out():
    torch.manual_seed(0)
    net = gpt(2, "rotary", True, True, True, init="torch").double()
    attention = net.blocks[0].attn
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    rows = attention.qkv_proj(x)[0]
    q, k, v = rows[:, :32].view(5, 4, 8), rows[:, 32:48].view(5, 2, 8), rows[:, 48:].view(5, 2, 8)

    def turn(vector, position):
        pairs = torch.complex(vector[:4], vector[4:])
        angle = position / 10_000.0 ** (torch.arange(4, dtype=torch.float64) / 4)
        turned = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag])

    out = torch.zeros(5, 4, 8, dtype=torch.float64)
    for head in range(4):
        for i in range(5):
            scores = torch.stack([turn(q[i, head], i) @ turn(k[j, head // 2], j) / math.sqrt(8) for j in range(i + 1)])
            out[i, head] = sum(weight * v[j, head // 2] for j, weight in enumerate(scores.softmax(0)))
    expected = attention.out_proj(out.view(1, 5, 32))
    torch.testing.assert_close(attention(x, net.rotation[:5]), expected, atol=1e-6, rtol=1e-6)


def test_rotated_queries_and_keys_know_their_distance_alone():
    rotation = rotary_angles(20, 8).double()
    q, k = torch.randn(2, 8, dtype=torch.float64)
    turned_q, turned_k = (rotate(x.expand(1, 1, 20, 8), rotation)[0, 0] for x in (q, k))
    torch.testing.assert_close(turned_q[9] @ turned_k[4], turned_q[17] @ turned_k[12], atol=1e-5, rtol=1e-5)
    assert abs(float(turned_q[9] @ turned_k[4] - turned_q[9] @ turned_k[5])) > 1e-4


def test_gpt2_initialisation():
    torch.manual_seed(0)
    net = GPT(vocab_size=256, context=64, layers=8, heads=4, width=128, bias=True)
    block = net.blocks[3]
    for weight, std in ((block.attn.q_proj.weight, 0.02), (block.mlp.down_proj.weight, 0.005), (net.token_embedding.weight, 0.02)):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert block.mlp.up_proj.bias.abs().sum() == 0
    assert gpt(None, "learned", True, False, False, init="torch").blocks[0].attn.q_proj.weight.std() > 0.08


def test_gpt2_small_has_nanogpts_parameters():
    with torch.device("meta"):
        net = GPT(50304, 1024, layers=12, heads=12, width=768, fused_qkv=True)
    assert sum(p.numel() for p in net.parameters()) - 1024 * 768 == 123_587_328  # what nanoGPT calls 123.59M, without positions


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"heads": 3}, "heads=3"),
        ({"kv_heads": 3}, "kv_heads=3"),
        ({"layers": 0}, "layers=0"),
        ({"width": 36, "positions": "rotary"}, "odd size"),
    ],
)
def test_a_gpt_that_cannot_be_is_refused(arguments, found):
    with pytest.raises(MisconfigurationException, match=found):
        GPTModel(**{"width": 128, **arguments})


def test_only_matrices_are_decayed():
    model = GPTModel(layers=1, width=32, bias=True, lr=1e-3, weight_decay=0.1)
    decayed, others = model.parameter_groups()
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    assert "weight_decay" not in decayed
    assert others["weight_decay"] == 0.0


def test_the_standard_library_is_split_by_file():
    data = PythonText(context=32)
    documents = data.documents()
    splits = split_documents(documents)
    assert sum(map(len, splits.values())) == len(documents) > 300
    assert len(splits["val"]) == pytest.approx(len(documents) / 20, abs=1)
    root = Path(sysconfig.get_path("stdlib"))
    assert (root / "ast.py").read_text() in documents
    assert data.documents() == documents
    data.setup("fit")
    text = data.decode(data.tokens("val")[:2000].tolist())
    assert splits["val"][0].startswith(text.split("\n\n")[0])


def test_topics_are_english():
    data = PythonText(part="topics")
    documents = data.documents()
    assert len(documents) > 50
    assert sum("the" in text for text in documents) > 40


def test_windows_are_random_in_training_and_the_same_in_validation(texts):
    data = TextFolder(str(texts), context=16, batch_size=4, epoch_windows=12, eval_windows=5)
    data.setup("fit")
    tokens = data.tokens("train")
    torch.manual_seed(0)
    batches = list(data.train_dataloader())
    assert [tuple(batch.shape) for batch in batches] == [(4, 17)] * 3
    text = tokens.tobytes()
    assert all(bytes(window.tolist()) in text for batch in batches for window in batch)
    assert not torch.equal(torch.cat(list(data.train_dataloader())), torch.cat(batches))
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(data.train_dataloader())), torch.cat(batches))
    first, again = (torch.cat(list(data.val_dataloader())) for _ in range(2))
    assert len(first) == 5
    assert torch.equal(first, again)


def test_validation_windows_do_not_overlap_and_cover_a_short_text(texts):
    data = TextFolder(str(texts), context=16, eval_windows=10_000)
    data.setup("fit")
    windows = torch.cat(list(data.val_dataloader()))
    tokens = data.tokens("val")
    assert len(windows) == math.ceil((len(tokens) - 16) / 16)
    seen = np.concatenate([window[1:].numpy() for window in windows])
    assert len(seen) > 0.9 * (len(tokens) - 16)


def test_byte_pairs_are_trained_on_the_training_text_once(texts):
    data = TextFolder(str(texts), tokenizer="pairs.json", vocab_size=300, context=8)
    data.prepare_data()
    data.setup("fit")
    assert data.vocab_size == 300
    text = data.decode(data.tokens("val").tolist())
    assert text.startswith(sorted(texts.glob("*.txt"))[1].read_text()[:200])
    assert len(data.tokens("val")) < 0.8 * len(text)
    written = Path("pairs.json").stat().st_mtime_ns
    data.prepare_data()
    assert Path("pairs.json").stat().st_mtime_ns == written
    Path("pairs.json").write_text("{}")
    again = TextFolder(str(texts), tokenizer="pairs.json", vocab_size=300, context=8)
    with pytest.raises(MisconfigurationException, match=r"pairs\.json cannot be read as a tokenizer"):
        again.setup("fit")


def test_nanogpts_files(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"looked for nowhere/train\.bin"):
        TokenFiles("nowhere").setup("fit")
    for name, count in (("train", 500), ("val", 100)):
        (np.arange(count) % 50257).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    data = TokenFiles(str(tmp_path), context=32)
    data.setup("fit")
    assert data.tokens("train")[:40].tolist() == list(range(40))
    assert len(data.tokens("test")) == 100  # there is no test.bin
    assert data.decode([3, 5]) == "3 5"
    with pytest.raises(MisconfigurationException, match="The val text has 100 tokens, but a window takes 129"):
        TokenFiles(str(tmp_path), context=128).setup("fit")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: PythonText(vocab_size=512), "there are 256 bytes"),
        (lambda: PythonText(context=0), "must be at least 1"),
        (lambda: TextFolder("nowhere").documents(), r"looked for nowhere/\*\*/\*\.txt"),
        (lambda: split_documents(["one"]), "There are 1 documents"),
        (lambda: HuggingFaceModel({"model_type": "lama"}), "no causal language model of model_type 'lama'; near matches: llama"),
    ],
)
def test_a_mistake_in_data_or_model_is_named(make, found):
    with pytest.raises(MisconfigurationException, match=found):
        make()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.vocab_size", "100"], "The model has vocab_size 100 but the data have 256; set --model.vocab_size 256."),
        (["--data.context", "64"], "The model has context 32 but the data have 64; set --model.context 64."),
        (["--model.lr_", "1"], "lr_"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_error(args, message, capsys):
    try:
        code = main(["fit", "--config", STDLIB, *TINY_GPT, *TINY_TEXT, *QUIET, "--trainer.max_steps", "1", *args])
    except SystemExit as stop:
        code = stop.code
    assert code != 0
    assert message in capsys.readouterr().err


def test_perplexity_speed_and_text_are_logged(tmp_path):
    assert (
        main(["fit", "--config", STDLIB, *TINY_GPT, *TINY_TEXT, *QUIET, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "2"])
        == 0
    )
    log = tmp_path / "runs" / "gpt_stdlib" / "version_0"
    board = EventAccumulator(str(log), size_guidance={"tensors": 0})
    board.Reload()
    loss, perplexity = (board.Scalars(f"val/{name}")[-1].value for name in ("loss", "perplexity"))
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert board.Scalars("train/tokens_per_s")[0].value > 0
    text = board.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("    ")


def test_generated_text_goes_on_from_the_prompt_and_draws_nothing_from_the_global_state():
    torch.manual_seed(0)
    model = GPTModel(context=8, layers=1, width=32, dropout=0.5).train()
    prompt = torch.tensor([1, 2, 3])
    before = torch.random.get_rng_state()
    text = model.generate(prompt, 20, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert len(text) == 23
    assert torch.equal(text[:3], prompt)
    assert torch.equal(model.generate(prompt, 20, seed=1), text)
    assert not torch.equal(model.generate(prompt, 20, seed=2), text)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_hugging_face_models_by_configuration(kind):
    names = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "gpt2":
        names = {"n_layer": 1, "n_embd": 32, "n_head": 4}
    model = HuggingFaceModel({"model_type": kind, **names}, vocab_size=50, context=16, lr=1e-3)
    assert model(torch.zeros(2, 16, dtype=torch.int64)).shape == (2, 16, 50)
    report = inspect_model(model)
    assert report.architecture.value == "transformer"
    assert not any(parameter.guess for parameter in report.parameters)
    assert any((parameter.lines or "").startswith(("q:4x8", "4*")) for parameter in report.parameters)


def test_a_model_learns_more_than_the_frequencies_of_bytes(texts, capsys):
    arguments = ["--data", "TextFolder", "--data.root", str(texts), "--data.context", "32", "--data.epoch_windows", "3200"]
    small = ["--model.context", "32", "--model.layers", "2", "--model.width", "64", "--trainer.max_epochs", "1"]
    assert main(["fit", "--config", STDLIB, *small, *arguments, *QUIET]) == 0
    loss = float(capsys.readouterr().out.split("test loss: ")[1].split()[0])
    counts = np.bincount(np.frombuffer(b"".join(file.read_bytes() for file in texts.glob("*.txt")), dtype=np.uint8))
    shares = counts[counts > 0] / counts.sum()
    assert loss < 0.5 * -(shares * np.log(shares)).sum()
