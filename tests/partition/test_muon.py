"""Which matrices Muon and NorMuon orthogonalise, of models of the libraries and of some by hand, against sets written by hand."""

from __future__ import annotations

import ast
import copy
import re
import warnings

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMiniWarning, MatrixLayout, inspect_model, partition_model
from lightning_adam_mini.analysis.memory import count_memory
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Architecture as A
from lightning_adam_mini.detection.roles import Role as R
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition import make_strategy


def par(name, shape, role, **more):
    return ParameterReport(name, shape, role, role, "by hand", **more)


def hidden(model, partition="muon", **options):
    """The matrices of what is orthogonalised, by name; all else has the layout of ``"auto"``."""
    layouts = partition_model(model, partition, **options)
    rest = {name: layout for name, layout in layouts.items() if not isinstance(layout, MatrixLayout)}
    assert rest.items() <= partition_model(model, "auto").items()
    return {name: layout.matrices for name, layout in layouts.items() if isinstance(layout, MatrixLayout)}


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)
        yield


# ---- models of the libraries ----------------------------------------------------------------------------------------------


class TestTransformers:
    @pytest.fixture(autouse=True)
    def library(self):
        self.transformers = pytest.importorskip("transformers")

    def gpt2(self, **options):
        config = {"n_layer": 2, "n_embd": 24, "n_head": 3, "vocab_size": 11, "n_positions": 8, **options}
        return self.transformers.GPT2LMHeadModel(self.transformers.GPT2Config(**config))

    def moe(self, name, **options):
        sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        config = getattr(self.transformers, f"{name}Config")(**sizes, num_attention_heads=4, num_key_value_heads=2, **options)
        return getattr(self.transformers, f"{name}ForCausalLM")(config)

    def test_gpt2_whose_weights_are_transposed(self):
        block = {
            "attn.c_attn.weight": ((1, 24, 24),) * 3,
            "attn.c_proj.weight": ((1, 24, 24),),
            "mlp.c_fc.weight": ((1, 96, 24),),
            "mlp.c_proj.weight": ((1, 24, 96),),
        }
        expected = {f"transformer.h.{i}.{name}": matrices for i in range(2) for name, matrices in block.items()}
        assert hidden(self.gpt2()) == expected
        by_head = expected | {f"transformer.h.{i}.attn.c_attn.weight": ((1, 8, 24),) * 9 for i in range(2)}
        assert hidden(self.gpt2(), cut="head") == by_head
        assert hidden(self.gpt2(), cut="none") == expected | {f"transformer.h.{i}.attn.c_attn.weight": ((1, 72, 24),) for i in range(2)}

    def test_the_values_of_gpt2_are_the_last_columns(self):
        layout = partition_model(self.gpt2(), "muon")["transformer.h.0.attn.c_attn.weight"]
        weight = torch.arange(24.0 * 72).reshape(24, 72)
        assert torch.equal(layout.split(weight)[2][0], weight[:, 48:].T)

    def test_experts(self):
        attention = {
            "self_attn.q_proj.weight": ((1, 16, 16),),
            "self_attn.k_proj.weight": ((1, 8, 16),),
            "self_attn.v_proj.weight": ((1, 8, 16),),
            "self_attn.o_proj.weight": ((1, 16, 16),),
            "mlp.gate.weight": ((1, 3, 16),),
        }
        shared = {
            "mlp.shared_expert.gate_proj.weight": ((1, 20, 16),),
            "mlp.shared_expert.up_proj.weight": ((1, 20, 16),),
            "mlp.shared_expert.down_proj.weight": ((1, 16, 20),),
        }
        mixtral = self.moe("Mixtral", num_local_experts=3)
        if "model.layers.0.mlp.experts.gate_up_proj" not in dict(mixtral.named_parameters()):
            pytest.skip("this transformers keeps each expert by itself")
        experts = {"mlp.experts.gate_up_proj": ((3, 48, 16),), "mlp.experts.down_proj": ((3, 16, 24),)}
        options = {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 20, "num_experts": 3}
        smaller = {"mlp.experts.gate_up_proj": ((3, 24, 16),), "mlp.experts.down_proj": ((3, 16, 12),)}
        for model, expected in (
            (mixtral, attention | experts),
            (self.moe("Qwen2Moe", **options), attention | shared | smaller),  # its shared_expert_gate is a row
        ):
            with pytest.warns(
                AdamMiniWarning, match=r"orthogonalised whole.*'model.layers.\*.mlp.experts.gate_up_proj': 'gate:\d+\|up:\d+'"
            ):
                found = hidden(model)
            assert found == {f"model.layers.0.{name}": matrices for name, matrices in expected.items()}
        glob = "*.experts.gate_up_proj"
        layout = partition_model(mixtral, "muon", {glob: "gate:24|up:24"})["model.layers.0.mlp.experts.gate_up_proj"]
        assert layout.matrices == ((3, 24, 16), (3, 24, 16))
        assert partition_model(mixtral, "muon", {glob: "muon"})["model.layers.0.mlp.experts.gate_up_proj"].matrices == ((3, 48, 16),)

    def test_bytes_of_a_gpt(self):
        """4.02 bytes per parameter of which four are the momentum; in 8 bits 1.06."""
        with torch.device("meta"):
            model = self.gpt2(n_layer=8, n_embd=512, n_head=8, vocab_size=8192, n_positions=512)
        assert 4 < count_memory(model, ["muon"]).state("AdamMini", "muon").total / model.num_parameters() < 4.02
        eight = count_memory(model, ["muon", "normuon"], momentum_dtype="8bit")
        assert 1 < eight.state("AdamMini", "muon").total / model.num_parameters() < 1.06
        blocks = [eight.state("AdamMini", name).second_moments for name in ("muon", "normuon")]
        assert blocks[1] - blocks[0] == 8 * (3 * 512 + 512 + 4 * 512 + 512)  # rows: of the projections, of the output, up, and down


class TestTimm:
    @pytest.fixture(autouse=True)
    def library(self):
        self.timm = pytest.importorskip("timm")

    def test_vit(self):
        model = self.timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=3, img_size=32, num_classes=5)
        assert hidden(model) == {
            "blocks.0.attn.qkv.weight": ((1, 24, 24),) * 3,
            "blocks.0.attn.proj.weight": ((1, 24, 24),),
            "blocks.0.mlp.fc1.weight": ((1, 96, 24),),
            "blocks.0.mlp.fc2.weight": ((1, 24, 96),),
        }

    def test_resnet18(self):
        with torch.device("meta"):
            model = self.timm.create_model("resnet18")
        expected = {}
        for i, (inputs, outputs) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
            expected[f"layer{i}.0.conv1.weight"] = ((1, outputs, 9 * inputs),)
            for name in ("0.conv2", "1.conv1", "1.conv2"):
                expected[f"layer{i}.{name}.weight"] = ((1, outputs, 9 * outputs),)
            if i > 1:
                expected[f"layer{i}.0.downsample.0.weight"] = ((1, outputs, inputs),)
        assert hidden(model) == expected
        assert hidden(model, convolutions=False) == {}

    def test_depthwise_convolutions_are_left_out(self):
        with torch.device("meta"):
            model = self.timm.create_model("mobilenetv4_conv_small")
        found = hidden(model)
        depthwise = {name for name, p in model.named_parameters() if p.ndim == 4 and p.shape[1] == 1}
        ends = {"conv_stem.weight", "classifier.weight"}
        assert depthwise
        assert found.keys() == {name for name, p in model.named_parameters() if p.ndim > 1} - depthwise - ends


class TestGraphs:
    @pytest.fixture(autouse=True)
    def library(self):
        self.geometric = pytest.importorskip("torch_geometric")

    def test_the_last_layer_gives_the_output(self):
        from torch_geometric.nn import GCN

        assert hidden(GCN(6, 8, 3, 3)) == {"convs.0.lin.weight": ((1, 8, 6),), "convs.1.lin.weight": ((1, 8, 8),)}

    def test_gat(self):
        """Its attention vectors are no matrices; by head its heads are matrices of their own."""
        from torch_geometric.nn import GAT

        model = GAT(6, 8, 2, 3, heads=2)
        assert hidden(model) == {"convs.0.lin.weight": ((1, 8, 6),)}
        assert hidden(model, cut="head") == {"convs.0.lin.weight": ((1, 4, 6), (1, 4, 6))}

    def test_relations_are_matrices_of_their_own(self):
        from torch_geometric.nn import RGCNConv

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.out = RGCNConv(6, 8, 3), nn.Linear(8, 2)

            def forward(self, x, edge_index, edge_type):
                return self.out(self.conv(x, edge_index, edge_type).relu())

        assert hidden(Network()) == {"conv.weight": ((3, 8, 6),), "conv.root": ((1, 8, 6),)}


def test_unet_of_diffusers():
    """Neither ends nor what embeds the time step."""
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(block_out_channels=(8, 16), **sizes, **blocks)
    expected = {}
    convs = {  # inputs and outputs of the two convolutions, and whether there is a shortcut
        "down_blocks.0.resnets.0": (8, 8),
        "down_blocks.1.resnets.0": (8, 16),
        "mid_block.resnets.0": (16, 16),
        "mid_block.resnets.1": (16, 16),
        "up_blocks.0.resnets.0": (32, 16),
        "up_blocks.0.resnets.1": (24, 16),
        "up_blocks.1.resnets.0": (24, 8),
        "up_blocks.1.resnets.1": (16, 8),
    }
    for name, (inputs, outputs) in convs.items():
        expected[f"{name}.conv1.weight"] = ((1, outputs, 9 * inputs),)
        expected[f"{name}.conv2.weight"] = ((1, outputs, 9 * outputs),)
        if inputs != outputs:
            expected[f"{name}.conv_shortcut.weight"] = ((1, outputs, inputs),)
    expected["down_blocks.0.downsamplers.0.conv.weight"] = ((1, 8, 72),)
    expected["up_blocks.0.upsamplers.0.conv.weight"] = ((1, 16, 144),)
    for name in ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"):
        expected.update((f"{name}.{one}.weight", ((1, 16, 16),)) for one in ("to_q", "to_k", "to_v", "to_out.0"))
    assert hidden(model) == expected


def test_the_table_says_how_each_is_stepped():
    table, up = par("wte.weight", (11, 24), R.TOKEN_EMBEDDING), par("up.weight", (96, 24), R.MLP_UP)
    report = ModelReport(A.TRANSFORMER, "", (table, up, par("down.weight", (24, 96), R.MLP_DOWN)))
    for partition, up, down, both in (("muon", "0 B", "0 B", "44 B"), ("normuon", "384 B", "96 B", "524 B")):
        lines = [" ".join(line.split()) for line in report.table(partition_model(report, partition)).splitlines()]
        assert lines[-4:] == [
            "token_embedding 1 264 11 1.0 KiB -> 44 B wte.weight 11x24",
            f"mlp_up 1 2,304 {partition} 9.0 KiB -> {up} up.weight 96x24",
            f"mlp_down 1 2,304 {partition} 9.0 KiB -> {down} down.weight 24x96",
            f"total 3 4,872 2 {partition} 19.0 KiB -> {both}",
        ]


def test_groups_of_a_convolution_are_matrices_of_their_own():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8))
    assert hidden(model) == hidden(model, cut="none") == {"2.weight": ((1, 4, 36), (1, 4, 36))}


# ---- by hand --------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Fused, with the heads outermost: queries, keys and values of the first head, then those of the second."""

    def __init__(self, size=8, heads=2):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x):
        b, t, size = x.shape
        q, k, v = self.qkv(x).view(b, t, self.heads, 3, size // self.heads).permute(3, 0, 2, 1, 4)
        scores = (q @ k.transpose(-1, -2) / (size // self.heads) ** 0.5).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(b, t, size))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.head = Attention(), nn.Linear(8, 5)
        self.mixer = nn.Parameter(torch.randn(8, 8))
        self.state_map = nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x):
        return self.head(self.attn(x) @ self.mixer)


def test_running_shows_the_order_of_a_fused_projection():
    model = Attention()
    assert inspect_model(model, heads=False).by_name["qkv.weight"].lines is None
    assert hidden(model) == {"qkv.weight": ((1, 8, 8),) * 3, "proj.weight": ((1, 8, 8),)}
    weight = torch.arange(24.0)[:, None].expand(24, 8)
    parts = partition_model(model, "muon")["qkv.weight"].split(weight)
    assert [part[0, :, 0].tolist() for part in parts] == [[*range(a, a + 4), *range(a + 12, a + 16)] for a in (0, 4, 8)]


def test_what_is_not_known_goes_to_auto_and_the_override_to_paste_is_accepted():
    model = Network()
    with pytest.warns(AdamMiniWarning, match=r"1 parameter may belong to the hidden matrices, but that is not known \(state_map") as caught:
        found = hidden(model)  # running shows that the mixer multiplies
    assert found == {"attn.qkv.weight": ((1, 8, 8),) * 3, "attn.proj.weight": ((1, 8, 8),), "mixer": ((1, 8, 8),)}
    assert len(caught) == 1
    text = str(caught[0].message)
    pasted = ast.literal_eval(text[text.index("overrides=") + 10 : text.index("}") + 1])
    assert pasted == {"state_map": "muon"}
    layouts = partition_model(model, "normuon", pasted)
    assert layouts["mixer"] == MatrixLayout((8, 8), rows=1, beta2=0.95)
    assert layouts["state_map"].matrices == ((3, 6, 8),)
    assert partition_model(model, "muon", {"mixer": "factored", "state_map": "factored"})["mixer"] == BlockLayout.factored((8, 8), 1, 0)


def test_a_fused_projection_whose_order_nothing_shows_is_one_matrix_and_said():
    fused = par("h.0.qkv.weight", (96, 32), R.QKV, guess=True)
    report = ModelReport(A.TRANSFORMER, "", (fused, par("h.1.qkv.weight", (96, 32), R.QKV, guess=True)))
    with pytest.warns(AdamMiniWarning, match="orthogonalised whole") as caught:
        assert set(hidden(report).values()) == {((1, 96, 32),)}
    assert len(caught) == 1
    text = str(caught[0].message)
    pasted = ast.literal_eval(text[text.index("overrides=") + 10 : text.index("}") + 1])
    assert {layout.matrices for layout in partition_model(report, "muon", pasted).values()} == {((1, 32, 32),) * 3}
    with pytest.raises(ValueError, match="orthogonalised whole"):
        partition_model(report, "muon", strict=True)
    assert set(hidden(report, cut="none").values()) == {((1, 96, 32),)}


def test_a_doubt_about_heads_or_the_kind_of_network_is_told_only_where_heads_are_cut():
    query = par("q.weight", (8, 8), R.QUERY, lines="q:2x4", guess=True)
    report = ModelReport(A.TRANSFORMER, "may have attention", (query,), guess=True)
    assert hidden(report) == {"q.weight": ((1, 8, 8),)}
    with pytest.warns(AdamMiniWarning, match="heads in 1 parameter are only likely"):
        assert hidden(report, cut="head") == {"q.weight": ((1, 4, 8), (1, 4, 8))}


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (par("w", (12, 4), R.RECURRENT_HIDDEN, lines="reset:4|update:4|new:4"), ((1, 4, 4),) * 3),
        (par("w", (4, 6), R.LORA_A), ((1, 4, 6),)),
        (par("w", (6, 4), R.LORA_B, lines="q:1x2|k:1x2|v:1x2"), ((1, 2, 4),) * 3),
        (par("w", (6, 8), R.MODULATION), ((1, 6, 8),)),
        (par("w", (6, 8, 1), R.TOKEN_MIX), ((1, 6, 8),)),
        (par("w", (8, 4, 3, 3), R.CONV, axis=1), ((1, 4, 72),)),  # transposed
        (par("w", (8, 4, 3, 3), R.CONV, lines="group:2x4"), ((1, 4, 36),) * 2),
        (par("w", (1, 8, 4, 3, 3), R.CONV, axis=1), ((1, 8, 36),)),  # StyleGAN2's
        (par("w", (8, 1, 3, 3), R.CONV), None),
        (par("w", (8, 1, 3, 3), R.CONV_DEPTHWISE), None),
        (par("w", (8, 3, 3, 3), R.FIRST_CONV), None),
        (par("w", (8, 48), R.PATCH_EMBEDDING), None),
        (par("w", (1, 8), R.LINEAR), None),
        (par("w", (8, 1), R.LINEAR), None),
        (par("w", (5, 8), R.QKV, lines="q:1|k:2|v:2"), None),  # queries are a row
        (par("w", (1, 2, 4), R.ATTN_OTHER), None),
        (par("w", (4, 4), R.OTHER), None),  # known to be none of these
        (par("w", (0, 4), R.LINEAR), None),
        (par("w", (8, 8), R.TIME_EMBEDDING), None),
        (par("w", (8, 8), R.SCALE), None),
    ],
    ids=lambda value: f"{value.role}-{value.shape}" if isinstance(value, ParameterReport) else "",
)
def test_roles(parameter, expected):
    reader = par("reader", (2, parameter.shape[parameter.axis] or 1), R.CLASSIFIER)
    found = hidden(ModelReport(A.UNKNOWN, "", (parameter, reader)))
    assert found == ({} if expected is None else {"w": expected})


# ---- options and overrides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "options", "message"),
    [
        ("muon", {"cut": "heads"}, "cut='heads' is not an option of MuonPartition, because cut is one of 'role', 'head', 'none'"),
        ("muon", {"momentum": 1}, "momentum=1 .* from 0 to below 1"),
        ("muon", {"momentum": "0.9"}, "momentum='0.9'"),
        ("normuon", {"momentum": -0.1}, "momentum=-0.1 is not an option of NorMuonPartition"),
        ("muon", {"iterations": 0}, "iterations=0 .* whole number from 1 on"),
        ("muon", {"iterations": 2.5}, "iterations=2.5"),
        ("muon", {"iterations": True}, "iterations=True"),
        ("muon", {"precision": "float16"}, "precision='float16' .* one of 'float32', 'bfloat16', None"),
        ("muon", {"convolutions": "no"}, "convolutions='no' .* true or false"),
        ("muon", {"embedding": "row"}, "embedding='row'"),
        ("normuon", {"beta2": 1.5}, "beta2=1.5"),
        ("normuon", {"beta2": None}, "beta2=None"),
        ("muon", {"beta2": 0.9}, "'muon' has no option 'beta2'"),
    ],
)
def test_bad_options(partition, options, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(partition, **options)


def test_options_reach_the_layouts():
    report = ModelReport(A.TRANSFORMER, "", (par("w", (8, 4), R.MLP_UP), par("o", (2, 8), R.CLASSIFIER)))
    options = {"momentum": 0.9, "iterations": 6, "precision": "float32"}
    assert partition_model(report, "muon", **options)["w"] == MatrixLayout((8, 4), **options)
    assert partition_model(report, "normuon", **options, beta2=0.8)["w"] == MatrixLayout((8, 4), **options, beta2=0.8)
    table = ModelReport(A.TRANSFORMER, "", (par("t", (50, 4), R.TOKEN_EMBEDDING),))
    assert partition_model(table, "muon", embedding="parameter")["t"].is_per_parameter


REPORT = ModelReport(
    A.TRANSFORMER,
    "",
    (
        par("qkv.weight", (12, 8), R.QKV, lines="q:2x2|k:2x2|v:2x2"),
        par("experts.w", (3, 6, 8), R.MLP_UP, axis=1),
        par("head.weight", (5, 12), R.CLASSIFIER),
        par("head.bias", (5,), R.BIAS),
    ),
)


@pytest.mark.parametrize("partition", ["auto", "adam_mini", "adam", "muon"])
@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("qkv.weight", "muon", MatrixLayout((12, 8), cut="q:4|k:4|v:4")),
        ("experts.w", "muon", MatrixLayout((3, 6, 8), rows=1, stacked=(0,))),
        ("head.weight", "muon", MatrixLayout((5, 12))),
        ("head.weight", {"rows": 1}, MatrixLayout((5, 12), rows=1)),
        ("experts.w", {"rows": 2, "stacked": [0], "beta2": 0.9}, MatrixLayout((3, 6, 8), rows=2, stacked=(0,), beta2=0.9)),
        ("qkv.weight", {"rows": 0, "cut": "q:8|v:4", "momentum": 0.8}, MatrixLayout((12, 8), cut="q:8|v:4", momentum=0.8)),
        ("qkv.weight", MatrixLayout((12, 8)), MatrixLayout((12, 8))),
    ],
)
def test_overrides_put_a_matrix_in(partition, name, spec, expected):
    layouts = partition_model(REPORT, partition, {name: spec})
    assert layouts[name] == expected
    assert BlockLayout.from_plain(copy.deepcopy(layouts[name].to_plain())) == expected


def test_overrides_go_by_the_options():
    assert partition_model(REPORT, "muon", {"qkv.*": "muon"}, cut="none")["qkv.weight"].matrices == ((1, 12, 8),)
    assert partition_model(REPORT, "muon", {"qkv.*": "q:4x2|v:2x2"})["qkv.weight"].matrices == ((1, 8, 8), (1, 4, 8))
    assert partition_model(REPORT, "muon", {"qkv.*": "q:4x2|v:2x2"}, cut="head")["qkv.weight"].matrices == ((1, 2, 8),) * 6
    assert partition_model(REPORT, "muon", {"head.weight": "muon"})["head.weight"] == MatrixLayout((5, 12))
    assert not partition_model(REPORT, "muon", {"qkv.*": {"role": "classifier"}})["qkv.weight"].is_orthogonal


@pytest.mark.parametrize("spec", ["factored", "line", "tensor", "parameter", {"dims": [1]}])
def test_overrides_take_a_matrix_out(spec):
    assert partition_model(REPORT, "muon", {"qkv.*": spec}) == (
        partition_model(REPORT, "muon") | {"qkv.weight": partition_model(REPORT, "auto", {"qkv.*": spec})["qkv.weight"]}
    )


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("head.bias", "muon", r"'head.bias' of shape \(5,\) is no matrix"),
        ("qkv.weight", "q:1|k:5|v:6", "matrices of a single row"),
        ("qkv.weight", {"rows": 0, "cut": "q:3"}, "3 lines, but dimension 0"),
        ("qkv.weight", {"rows": 2}, "Dimension 2 is out of range"),
        ("qkv.weight", {"rows": "0"}, "rows is '0', but it has to be a whole number"),
        ("qkv.weight", {"rows": 0, "stacked": 1}, "stacked is 1, but it has to be a list of dimensions"),
        ("qkv.weight", {"rows": 0, "heads": 2}, "the key 'heads' is unknown; the keys beside 'rows' are rows, stacked, cut, momentum"),
        ("qkv.weight", {"rows": 0, "momentum": 2}, "momentum=2"),
    ],
)
def test_bad_overrides(name, spec, message):
    with pytest.raises(ValueError, match=message):
        partition_model(REPORT, "muon", {name: spec})


class Held(nn.Module):
    def __init__(self, **held):
        super().__init__()
        for name, module in held.items():
            setattr(self, name, module)


@pytest.mark.parametrize(
    ("model", "output"),
    [
        (Held(answers=nn.Linear(8, 3), layers=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))), "answers.weight"),
        (
            Held(
                net=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
                backbone=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            ),
            "net.2.weight",
        ),
    ],
    ids=["made first", "made before a backbone"],
)
def test_what_no_layer_reads_may_be_an_output_and_is_said(model, output):
    with pytest.warns(AdamMiniWarning, match=rf"not known \({re.escape(output)}"):
        layouts = partition_model(model, "muon")
    assert not layouts[output].is_orthogonal
    assert partition_model(model, "muon", {output: "muon"})[output].is_orthogonal


def test_it_does_not_matter_where_tensors_are_made_by_default():
    with torch.device("meta"):
        cut = MatrixLayout((12, 5), cut="3*(q:2|k:2)")
        assert cut.matrices == ((1, 6, 5), (1, 6, 5))
    assert torch.equal(cut.join(cut.split(values := torch.randn(12, 5))), values)
