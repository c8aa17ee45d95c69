"""Each strategy on small reports of each architecture, with the expected blocks written out by hand."""

from __future__ import annotations

import ast
import math
import warnings

import pytest

from lightning_adam_mini._warnings import AdamMiniWarning
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Architecture as A
from lightning_adam_mini.detection.roles import Role as R
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition import (
    STRATEGIES,
    AdamMiniPartition,
    PartitionStrategy,
    TensorPartition,
    partition_model,
    register_strategy,
)


def par(name, shape, role, owner=None, **more):
    return ParameterReport(name, shape, role, owner or role, "by hand", **more)


# A decoder with one block of everything: grouped-query attention, a fused projection in GPT-NeoX's order, GPT-2's transposed weights.
DECODER = (
    par("wte.weight", (10, 8), R.TOKEN_EMBEDDING),
    par("wpe.weight", (6, 8), R.POSITION_EMBEDDING),
    par("h.0.ln.weight", (8,), R.NORM),
    par("h.0.ln.bias", (8,), R.BIAS, R.NORM),
    par("h.0.q.weight", (8, 8), R.QUERY, lines="q:4x2"),
    par("h.0.q.bias", (8,), R.BIAS, R.QUERY),
    par("h.0.k.weight", (4, 8), R.KEY, lines="k:2x2"),
    par("h.0.v.weight", (4, 8), R.VALUE, lines="v:2x2"),
    par("h.0.o.weight", (8, 8), R.ATTN_OUT),
    par("h.0.up.weight", (16, 8), R.MLP_UP),
    par("h.0.down.weight", (8, 16), R.MLP_DOWN),
    par("h.1.qkv.weight", (12, 8), R.QKV, lines="2*(q:1x2|k:1x2|v:1x2)"),
    par("h.2.c_attn.weight", (8, 24), R.QKV, axis=1, lines="q:2x4|k:2x4|v:2x4"),
    par("h.2.c_fc.weight", (8, 32), R.MLP_UP, axis=1),
    par("lm_head.weight", (10, 8), R.LM_HEAD),
    par("lm_head.bias", (10,), R.BIAS, R.LM_HEAD),
)
TRANSFORMER = ModelReport(A.TRANSFORMER, "by hand", DECODER)

# (dims averaged, axis, lines) of each parameter, in the order above.
PER_PARAMETER = ((), None, None)
ROW, COLUMN = ((1,), None, None), ((0,), None, None)
ONE, ONE_1D = ((0, 1), None, None), ((0,), None, None)

V2 = {
    "wte.weight": ROW,
    "wpe.weight": ONE,
    "h.0.ln.weight": ONE_1D,
    "h.0.ln.bias": PER_PARAMETER,
    "h.0.q.weight": ((1,), 0, "q:4x2"),
    "h.0.q.bias": PER_PARAMETER,
    "h.0.k.weight": ((1,), 0, "k:2x2"),
    "h.0.v.weight": ROW,
    "h.0.o.weight": ROW,
    "h.0.up.weight": ROW,
    "h.0.down.weight": ROW,
    "h.1.qkv.weight": ((1,), 0, "2*(q:1x2|k:1x2|v:2x1)"),
    "h.2.c_attn.weight": ((0,), 1, "q:2x4|k:2x4|v:8x1"),
    "h.2.c_fc.weight": COLUMN,
    "lm_head.weight": ROW,
    "lm_head.bias": PER_PARAMETER,
}
V2_WHOLE = V2 | {
    "h.0.v.weight": ONE,
    "h.1.qkv.weight": ((1,), 0, "2*(q:1x2|k:1x2|v:2)"),
    "h.2.c_attn.weight": ((0,), 1, "q:2x4|k:2x4|v:8"),
}
BY_NEURON = V2 | {"wpe.weight": ROW, "h.0.q.weight": ROW, "h.0.k.weight": ROW, "h.1.qkv.weight": ROW, "h.2.c_attn.weight": COLUMN}
BY_NEURON_WHOLE = BY_NEURON | {
    "h.0.v.weight": ONE,
    "h.1.qkv.weight": ((1,), 0, "2*(q:2x1|k:2x1|v:2)"),
    "h.2.c_attn.weight": ((0,), 1, "q:8x1|k:8x1|v:8"),
}
CROSSED, ACROSS = ((1,), None, None, (0,)), ((0,), None, None, (1,))
FACTORED = {p.name: PER_PARAMETER if len(p.shape) == 1 else ACROSS if p.axis else CROSSED for p in DECODER}
AUTO = FACTORED | {"wte.weight": ROW, "wpe.weight": ROW}
BIASES = ("h.0.ln.bias", "h.0.q.bias", "lm_head.bias")
V1 = V2_WHOLE | {
    "wte.weight": PER_PARAMETER,
    "lm_head.weight": PER_PARAMETER,
    "h.0.o.weight": ONE,
    "h.0.up.weight": ONE,
    "h.0.down.weight": ONE,
    "h.2.c_fc.weight": ONE,
    **dict.fromkeys(BIASES, ONE_1D),
}
TENSOR = {p.name: ONE if len(p.shape) == 2 else ONE_1D for p in DECODER}
LN_TL = TENSOR | dict.fromkeys(("h.0.ln.weight", "h.0.ln.bias", "lm_head.weight", "lm_head.bias"), PER_PARAMETER)
EMBEDDINGS = ("wte.weight", "lm_head.weight")


def plain(layouts):
    return {name: layout.to_plain()[1:] for name, layout in layouts.items()}


@pytest.mark.parametrize(
    ("partition", "options", "expected"),
    [
        ("auto", {}, AUTO),
        ("auto", {"embedding": "parameter"}, AUTO | {"wte.weight": PER_PARAMETER}),
        ("auto", {"embedding": "factored"}, AUTO | {"wte.weight": CROSSED}),
        ("factored", {}, FACTORED),
        ("adam_mini", {"query_key": "neuron", "position": "position"}, BY_NEURON),
        ("adam_mini", {"query_key": "neuron", "position": "position", "value": "whole"}, BY_NEURON_WHOLE),
        ("adam_mini", {"position": "position"}, V2 | {"wpe.weight": ROW}),
        ("adam_mini", {}, V2),
        ("adam_mini", {"value": "neuron", "embedding": "token", "bias": "parameter"}, V2),
        ("adam_mini", {"value": "whole"}, V2_WHOLE),
        ("adam_mini", {"embedding": "parameter"}, V2 | dict.fromkeys(EMBEDDINGS, PER_PARAMETER)),
        ("adam_mini", {"embedding": "none"}, V2 | dict.fromkeys(EMBEDDINGS, ONE)),
        ("adam_mini", {"bias": "tensor"}, V2 | dict.fromkeys(BIASES, ONE_1D)),
        ("adam_mini_v1", {}, V1),
        ("adam_mini_v1", {"embedding": "token"}, V1 | dict.fromkeys(EMBEDDINGS, ROW)),
        ("adam_mini_v1", {"embedding": "none"}, V1 | dict.fromkeys(EMBEDDINGS, ONE)),
        ("adam_mini_v1", {"bias": "parameter"}, V1 | dict.fromkeys(BIASES, PER_PARAMETER)),
        ("tensor", {}, TENSOR),
        ("adalayer", {}, TENSOR),
        ("adalayer_ln_tl", {}, LN_TL),
        ("adam", {}, {p.name: PER_PARAMETER for p in DECODER}),
    ],
)
@pytest.mark.parametrize("architecture", [A.TRANSFORMER, A.DIFFUSION_TRANSFORMER, A.HYBRID])
def test_transformers(architecture, partition, options, expected):
    report = ModelReport(architecture, "by hand", DECODER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layouts = partition_model(report, partition, **options)
    assert plain(layouts) == expected
    assert list(layouts) == [p.name for p in DECODER]


def test_counts_of_v2():
    """The same partition once more, as numbers of blocks."""
    counts = [layout.num_blocks for layout in partition_model(TRANSFORMER, "adam_mini").values()]
    assert counts == [10, 1, 1, 8, 4, 8, 2, 4, 8, 16, 8, 2 + 2 + 4, 2 + 2 + 8, 32, 10, 10]


UNET = (
    par("conv_in.weight", (4, 3, 3, 3), R.FIRST_CONV),
    par("conv_in.bias", (4,), R.BIAS, R.FIRST_CONV),
    par("norm.weight", (4,), R.NORM),
    par("to_q.weight", (8, 8), R.QUERY, lines="q:2x4"),
    par("to_v.weight", (8, 8), R.VALUE, lines="v:2x4"),
    par("ff.weight", (16, 8), R.MLP_UP),
    par("class_embedding.weight", (10, 8), R.TOKEN_EMBEDDING),
    par("fc.weight", (5, 8), R.CLASSIFIER),
    par("temperature", (), R.SCALE),
)
BY_INPUT = {
    "conv_in.weight": BlockLayout((4, 3, 3, 3), (0, 2, 3)),
    "to_q.weight": BlockLayout((8, 8), (0,)),
    "to_v.weight": BlockLayout((8, 8), (0,)),
    "ff.weight": BlockLayout((16, 8), (0,)),
}
OTHERS = [A.CNN, A.GNN, A.DIFFUSION_UNET, A.MLP_MIXER, A.MLP, A.RNN, A.UNKNOWN]


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("partition", ["adam_mini", "adam_mini_v1"])
def test_other_networks_are_one_block_a_tensor(architecture, partition):
    report = ModelReport(architecture, "by hand", UNET)
    whole = {p.name: BlockLayout(p.shape, tuple(range(len(p.shape)))) for p in UNET}
    assert partition_model(report, partition) == whole
    assert partition_model(report, partition, bias="parameter") == whole | {"conv_in.bias": BlockLayout((4,))}
    rows = {name: BlockLayout(whole[name].shape, (1,)) for name in ("class_embedding.weight", "fc.weight")}
    assert partition_model(report, partition, embedding="token") == whole | rows


@pytest.mark.parametrize("architecture", OTHERS)
def test_rows_and_columns_do_not_depend_on_the_architecture(architecture):
    layouts = partition_model(ModelReport(architecture, "by hand", UNET))
    kept = {name: [margin.block_shape for margin in layout.margins] for name, layout in layouts.items()}
    square = [(8, 1), (1, 8)]
    assert kept == {
        "conv_in.weight": [(4, 1, 1, 1), (1, 3, 1, 1)],
        "conv_in.bias": [(4,)],
        "norm.weight": [(4,)],
        "to_q.weight": square,
        "to_v.weight": square,
        "ff.weight": [(16, 1), (1, 8)],
        "class_embedding.weight": [(10, 1)],
        "fc.weight": [(5, 1), (1, 8)],
        "temperature": [()],
    }


@pytest.mark.parametrize(
    ("parameter", "kept"),
    [
        (par("conv", (8, 4, 3, 3), R.CONV), [(8, 1, 1, 1), (1, 4, 1, 1)]),
        (par("transposed convolution", (8, 4, 3, 3), R.CONV, axis=1), [(1, 4, 1, 1), (8, 1, 1, 1)]),
        (par("depthwise", (8, 1, 3, 3), R.CONV_DEPTHWISE), [(8, 1, 1, 1), (1, 1, 3, 3)]),
        (par("of sound", (8, 4, 5), R.CONV), [(8, 1, 1), (1, 4, 1)]),
        (par("pointwise", (8, 4, 1, 1), R.CONV), [(8, 1, 1, 1), (1, 4, 1, 1)]),
        (par("experts", (3, 8, 4), R.MLP_UP, axis=1), [(3, 8, 1), (3, 1, 4)]),
        (par("experts, transposed", (3, 4, 8), R.MLP_UP, axis=2), [(3, 1, 8), (3, 4, 1)]),
        (par("unknown", (2, 3, 4, 5), R.OTHER), [(2, 3, 4, 1), (2, 3, 1, 5)]),
        (par("a vector with frills", (1, 8, 1), R.SCALE), [(1, 8, 1)]),
        (par("few", (2, 2), R.LINEAR), [(2, 2)]),
        (par("a scalar", (), R.SCALE), [()]),
        (par("positions", (1, 6, 8), R.POSITION_EMBEDDING), [(1, 6, 1)]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_which_dimensions_are_rows_and_which_columns(parameter, kept):
    layout = partition_model(ModelReport(A.UNKNOWN, "by hand", (parameter,)))[parameter.name]
    assert [margin.block_shape for margin in layout.margins] == kept


def test_weights_by_input_channel():
    cnn, unet = ModelReport(A.CNN, "by hand", UNET), ModelReport(A.DIFFUSION_UNET, "by hand", UNET)
    whole = partition_model(cnn, "adam_mini")
    assert partition_model(cnn, "adam_mini", weight="input") == whole | BY_INPUT
    assert partition_model(unet, "adam_mini", weight="auto") == whole | BY_INPUT
    assert partition_model(cnn, "adam_mini", weight="auto") == whole
    transposed = par("up.weight", (6, 4, 2, 2), R.CONV, axis=1)
    assert partition_model(ModelReport(A.CNN, "by hand", (transposed,)), "adam_mini", weight="input")["up.weight"].dims == (1, 2, 3)
    assert partition_model(TRANSFORMER, "adam_mini", weight="input") == partition_model(TRANSFORMER, "adam_mini")


def test_vision_transformer():
    """The classifier is the output layer; modulations and unknown linear maps go by line; tensors of other roles are one block each."""
    report = ModelReport(
        A.TRANSFORMER,
        "by hand",
        (
            par("cls_token", (1, 1, 8), R.SPECIAL_TOKEN),
            par("pos_embed", (1, 5, 8), R.POSITION_EMBEDDING),
            par("patch_embed.proj.weight", (8, 3, 2, 2), R.PATCH_EMBEDDING),
            par("blocks.0.attn.qkv.weight", (24, 8), R.QKV, lines="q:2x4|k:2x4|v:2x4"),
            par("blocks.0.ls.gamma", (8,), R.SCALE),
            par("adaln.weight", (48, 8), R.MODULATION),
            par("fc.weight", (8, 8), R.LINEAR),
            par("conv.weight", (8, 1, 3, 3), R.CONV_DEPTHWISE),
            par("head.weight", (5, 8), R.CLASSIFIER),
            par("temperature", (), R.SCALE),
        ),
    )
    assert [layout.num_blocks for layout in partition_model(report, "adam_mini").values()] == [1, 1, 1, 2 + 2 + 8, 1, 48, 8, 1, 5, 1]
    by_row_and_column = [8, 5, 8 + 3, 24 + 8, 8, 48 + 8, 8 + 8, 8 + 9, 5 + 8, 1]
    assert [layout.num_blocks for layout in partition_model(report).values()] == by_row_and_column


def test_lines_of_other_roles_within_a_fused_projection():
    """An MLP in the same Linear and a gate go by neuron in version 2, and as one block per role in version 1."""
    fused = par("fused.weight", (20, 4), R.QKV, lines="mlp_up:8|q:2x2|k:2x2|v:2x2")
    gated = par("q.weight", (12, 4), R.QUERY, lines="3*(q:1x2|gate:1x2)")
    alternating = par("qkv.weight", (12, 4), R.QKV, lines="2*[q,k,v]x2")
    report = ModelReport(A.TRANSFORMER, "by hand", (fused, gated, alternating))
    blocks = {
        ("adam_mini", "neuron"): [8 + 2 + 2 + 4, 3 + 6, 2 + 2 + 4],
        ("adam_mini", "whole"): [8 + 2 + 2 + 1, 3 + 6, 2 + 2 + 1],
    }
    for (partition, value), expected in blocks.items():
        layouts = partition_model(report, partition, value=value)
        assert [layout.num_blocks for layout in layouts.values()] == expected
    assert [layout.num_blocks for layout in partition_model(report, "adam_mini_v1").values()] == [1 + 2 + 2 + 1, 3 + 1, 2 + 2 + 1]


def test_1x1_convolutions_as_projections():
    report = ModelReport(
        A.HYBRID, "by hand", (par("q.weight", (8, 4, 1, 1), R.QUERY, lines="q:2x4"), par("v.weight", (8, 4, 1, 1), R.VALUE))
    )
    assert plain(partition_model(report, "adam_mini")) == {"q.weight": ((1, 2, 3), 0, "q:2x4"), "v.weight": ((1, 2, 3), None, None)}


@pytest.mark.parametrize(("shape", "axis", "dims"), [((3, 4, 6), 2, (1,)), ((3, 6, 4), 1, (2,))])
def test_stacked_experts_keep_their_expert(shape, axis, dims):
    """(experts, in, out) as in GPT-OSS and (experts, out, in) as in Mixtral: 3 experts of 6 neurons each."""
    report = ModelReport(A.TRANSFORMER, "by hand", (par("experts.up", shape, R.MLP_UP, axis=axis),))
    layout = partition_model(report, "adam_mini")["experts.up"]
    assert (layout.dims, layout.num_blocks) == (dims, 18)
    assert partition_model(report)["experts.up"].num_blocks == 3 * (6 + 4)


def test_lora():
    report = ModelReport(
        A.TRANSFORMER,
        "by hand",
        (
            par("q.lora_A.weight", (2, 8), R.LORA_A),
            par("q.lora_B.weight", (8, 2), R.LORA_B, lines="q:4x2"),
            par("fc.lora_B.weight", (8, 2), R.LORA_B),
        ),
    )
    assert [layout.num_blocks for layout in partition_model(report, "adam_mini").values()] == [2, 4, 8]
    assert [layout.num_blocks for layout in partition_model(report).values()] == [2 + 8, 8 + 2, 8 + 2]


def test_tied_output_layer():
    tied = par("wte.weight", (10, 8), R.TOKEN_EMBEDDING, aliases=("lm_head.weight",))
    norm = par("ln.weight", (8,), R.NORM)
    layouts = partition_model(ModelReport(A.TRANSFORMER, "by hand", (tied, norm)), "adalayer_ln_tl")
    assert all(layout.is_per_parameter for layout in layouts.values())
    head = par("head.weight", (3, 8), R.CLASSIFIER)
    layouts = partition_model(ModelReport(A.TRANSFORMER, "by hand", (tied, norm, head)), "adalayer_ln_tl")
    assert [layout.num_blocks for layout in layouts.values()] == [1, 8, 24]


def test_frozen_parameters_have_layouts():
    frozen = par("q.weight", (8, 8), R.QUERY, lines="q:4x2", trainable=False)
    assert partition_model(ModelReport(A.TRANSFORMER, "by hand", (frozen,)), "adam_mini")["q.weight"].num_blocks == 4


@pytest.mark.parametrize("partition", ["adam_mini", "adam_mini_v1"])
def test_unknown_heads_are_lines_with_a_warning(partition):
    report = ModelReport(
        A.TRANSFORMER,
        "by hand",
        (
            par("blocks.0.q.weight", (8, 8), R.QUERY),
            par("blocks.1.q.weight", (8, 8), R.QUERY),
            par("blocks.1.qkv.weight", (24, 8), R.QKV),
        ),
    )
    with pytest.warns(AdamMiniWarning) as caught:
        layouts = partition_model(report, partition)
    assert [layout.num_blocks for layout in layouts.values()] == [8, 8, 24]
    message = str(caught[0].message)
    assert len(caught) == 1
    assert "3 parameters" in message
    assert "blocks.0.q.weight (8, 8)" in message
    printed = message.partition("overrides=")[2]
    assert printed == "{'blocks.*.q.weight': 'q:1x8', 'blocks.*.qkv.weight': 'q:1x8|k:1x8|v:1x8'}"
    with warnings.catch_warnings():  # what is printed is accepted as it stands
        warnings.simplefilter("error")
        assert partition_model(report, partition, overrides=ast.literal_eval(printed))["blocks.0.q.weight"].num_blocks == 1
    # What it says to paste silences it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overrides = {"blocks.*.q.weight": {"heads": 4}, "blocks.*.qkv.weight": "q:4x2|k:4x2|v:4x2"}
        layouts = partition_model(report, partition, overrides=overrides)
    assert [layouts[f"blocks.{i}.q.weight"].num_blocks for i in (0, 1)] == [4, 4]


def test_no_warning_where_heads_do_not_matter():
    report = ModelReport(A.GNN, "by hand", (par("q.weight", (8, 8), R.QUERY),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition_model(report)
        for partition in ("tensor", "auto"):
            partition_model(ModelReport(A.TRANSFORMER, "by hand", report.parameters), partition, strict=True)


def test_heads_that_a_user_gives_are_blocks_whatever_the_option():
    overrides = {"h.0.q.weight": {"heads": 4}, "h.1.qkv.weight": "2*(q:1x2|k:1x2|v:1x2)"}
    assert plain(partition_model(TRANSFORMER, overrides=overrides)) == AUTO | {name: V2[name] for name in overrides}


# ---- selecting and writing strategies ------------------------------------------------------------------------------------


class LayerPair(PartitionStrategy):
    """Matrices get a layout outright."""

    def granularity(self, parameter, report):
        return BlockLayout(parameter.shape, dims=(0,)) if len(parameter.shape) == 2 else "parameter"


def test_own_strategy():
    layouts = partition_model(TRANSFORMER, LayerPair())
    assert layouts["h.0.up.weight"] == BlockLayout((16, 8), dims=(0,))
    assert layouts["h.0.q.bias"] == BlockLayout((8,))
    register_strategy("layer_pair", "pairs")(LayerPair)
    try:
        assert partition_model(TRANSFORMER, "pairs") == layouts
    finally:
        del STRATEGIES["layer_pair"], STRATEGIES["pairs"]


def test_own_strategy_with_a_wrong_layout():
    class Wrong(PartitionStrategy):
        def granularity(self, parameter, report):
            return BlockLayout((math.prod(parameter.shape),))

    with pytest.raises(ValueError, match=r"layout for shape \(80,\) to parameter 'wte.weight' of shape \(10, 8\)"):
        partition_model(TRANSFORMER, Wrong())


def test_taken_name():
    with pytest.raises(ValueError, match="'tensor' is taken"):
        register_strategy("tensor")(LayerPair)
    with pytest.raises(ValueError, match="'auto' is taken"):
        register_strategy("auto")(LayerPair)
    assert STRATEGIES["tensor"] is TensorPartition


@pytest.mark.parametrize(
    ("partition", "options", "message"),
    [
        (
            "adam_mini_v3",
            {},
            r"'adam_mini_v3' is unknown \(did you mean 'adam_mini.*'\?\); choose one of adalayer, adalayer_ln_tl, adam, ",
        ),
        (
            "adam_mini",
            {"values": "whole"},
            r"no option 'values' \(did you mean 'value'\?\); its options are value, query_key, position, embedding, bias",
        ),
        ("adam_mini_v1", {"value": "whole"}, r"'adam_mini_v1' has no option 'value'.*embedding, bias"),
        ("tensor", {"bias": "tensor"}, "no option 'bias'; its options are none"),
        ("adam_mini", {"value": "all"}, r"value='all' is not an option of AdamMiniPartition, because value is one of 'neuron', 'whole'"),
        ("adam_mini", {"embedding": "row"}, r"embedding='row'.*'token', 'parameter', 'none', None"),
        ("adam_mini", {"bias": True}, r"bias=True.*'parameter', 'tensor', None"),
        (AdamMiniPartition(), {"value": "whole"}, "Options value were given beside the strategy"),
    ],
)
def test_bad_names_and_options(partition, options, message):
    with pytest.raises(ValueError, match=message):
        partition_model(TRANSFORMER, partition, **options)


@pytest.mark.parametrize("wrong", [par("q.weight", (9, 8), R.QUERY, lines="q:4x2"), par("o.weight", (8, 8), R.ATTN_OUT, axis=2)])
def test_report_that_does_not_fit(wrong):
    with pytest.raises(ValueError, match=rf"parameter '{wrong.name}' do not fit its shape .*overrides=\{{'{wrong.name}': 'tensor'\}}"):
        partition_model(ModelReport(A.TRANSFORMER, "by hand", (wrong,)), "adam_mini")
