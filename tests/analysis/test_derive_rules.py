import math

import pytest

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.analysis import derive_rules
from lightning_adam_mini.analysis.derive_rules import group_ratios
from lightning_adam_mini.detection import Architecture, ModelReport, ParameterReport, Role
from lightning_adam_mini.partition import Rule

# Averages over the 51 measurements of the tables that github.com/dayal-kalra/low-memory-adam ships (a GPT of 12 layers): ratios of
# dimensions (0,), (1,) and (0, 1) at learning rates 3e-4 and 3e-3, and the rule that it ships, which is of the smaller one.
PUBLISHED = {
    "wte": (Role.TOKEN_EMBEDDING, (50304, 768), (0.0003, 5.1337, 0.0002), (0.0005, 0.8474, 0.0000), [1]),
    "wpe": (Role.POSITION_EMBEDDING, (1024, 768), (1.8822, 11.5977, 1.3272), (1.4590, 4.1927, 0.5730), [1]),
    "h.0.ln_1": (Role.NORM, (768,), (0.9323,), (0.2387,), []),
    "h.0.attn.q_proj": (Role.QUERY, (768, 768), (0.5609, 5.6282, 0.3693), (0.1699, 1.9119, 0.1177), [1]),
    "h.0.attn.k_proj": (Role.KEY, (768, 768), (0.5451, 2.0687, 0.3111), (0.3692, 2.1811, 0.0805), [1]),
    "h.0.attn.v_proj": (Role.VALUE, (768, 768), (2.4908, 1.5507, 0.8377), (0.7097, 0.2588, 0.1116), [0]),
    "h.0.attn.output_proj": (Role.ATTN_OUT, (768, 768), (11.1751, 0.1845, 0.1365), (6.1385, 0.1475, 0.1086), [0]),
    "h.0.mlp.mlp_up": (Role.MLP_UP, (3072, 768), (1.4908, 0.6063, 0.3391), (1.6068, 0.9030, 0.3984), [0]),
    "h.0.mlp.mlp_proj": (Role.MLP_DOWN, (768, 3072), (7.2071, 0.2134, 0.1444), (0.8815, 0.2565, 0.1512), [0]),
    "h.2.attn.q_proj": (Role.QUERY, (768, 768), (0.7980, 0.8375, 0.1992), (0.0799, 0.3188, 0.0345), []),
    "h.2.mlp.mlp_up": (Role.MLP_UP, (3072, 768), (2.9084, 1.5302, 0.8996), (1.0597, 0.2866, 0.1466), [0]),
    "h.2.mlp.mlp_proj": (Role.MLP_DOWN, (768, 3072), (3.7846, 3.4771, 1.5867), (0.7360, 0.3915, 0.1739), [0]),
    "h.3.attn.q_proj": (Role.QUERY, (768, 768), (1.0797, 1.0085, 0.2582), (0.1110, 0.3878, 0.0494), [0]),
    "h.9.attn.k_proj": (Role.KEY, (768, 768), (0.4414, 3.4435, 0.3310), (0.1906, 0.9302, 0.0483), [1]),
    "h.9.mlp.mlp_up": (Role.MLP_UP, (3072, 768), (3.0893, 4.0604, 1.7633), (2.1517, 0.5912, 0.1956), [1]),
    "h.11.mlp.mlp_up": (Role.MLP_UP, (3072, 768), (0.9391, 3.3755, 0.4540), (0.1452, 0.5223, 0.0772), [1]),
    "h.11.mlp.mlp_proj": (Role.MLP_DOWN, (768, 3072), (9.0305, 1.7859, 1.3927), (8.9741, 0.2150, 0.1321), [0]),
    "ln_f": (Role.NORM, (768,), (5.6910,), (0.6169,), []),
}
DIMS = ((0,), (1,), (0, 1))


def report_of(*parameters):
    return ModelReport(Architecture.TRANSFORMER, "", tuple(ParameterReport(n, s, r, r, "", axis=a) for n, s, r, a in parameters))


def published(which):
    report = report_of(*((name, row[1], row[0], 0) for name, row in PUBLISHED.items()))
    return report, {name: dict(zip(DIMS, row[which], strict=False)) for name, row in PUBLISHED.items()}


def test_published_tables_give_the_published_rules():
    rules = derive_rules(*published(2), by="parameter").rules
    assert {name: list(rule.dims) for name, rule in rules.items()} == {name: row[4] for name, row in PUBLISHED.items()}


def test_a_larger_learning_rate_gives_fewer_rules():
    rules = derive_rules(*published(3), by="parameter").rules
    kept = [name for name, rule in rules.items() if not rule.dims and PUBLISHED[name][4]]
    expected = ["wte", "h.0.attn.v_proj", "h.0.mlp.mlp_proj", "h.2.mlp.mlp_proj", "h.3.attn.q_proj", "h.9.attn.k_proj", "h.11.mlp.mlp_up"]
    assert kept == expected
    assert rules["h.9.mlp.mlp_up"].dims == (0,)  # and other ones


def test_averages_over_depth():
    report, averages = published(2)
    rules = derive_rules(report, averages, by="layer_type").rules
    up = [row[2] for row in PUBLISHED.values() if row[0] is Role.MLP_UP]
    means = [sum(column) / len(up) for column in zip(*up, strict=True)]
    assert rules["mlp_up"] == Rule(DIMS[means.index(max(means))], pytest.approx(max(means)), 4)
    assert rules["query"].dims == (1,)  # the layer that has no rule of its own is averaged with the others
    assert rules["norm"] == Rule((), pytest.approx((0.9323 + 5.691) / 2), 2)


def test_cutoff_and_ties():
    report = report_of(("w", (4, 3), Role.LINEAR, 0))
    averages = {"w": {(0,): 2.0, (1,): 3.0, (0, 1): 1.0}}
    assert derive_rules(report, averages, cutoff=3.0).rules["linear"].dims == ()
    assert derive_rules(report, averages, cutoff=2.9).rules["linear"].dims == (1,)
    constant = {"w": {(0,): math.inf, (1,): math.inf, (0, 1): math.inf}}
    assert derive_rules(report, constant).rules["linear"].dims == (0, 1)  # what saves most
    unknown = {"w": {(0,): math.nan, (1,): math.nan, (0, 1): math.nan}}
    assert derive_rules(report, unknown).rules["linear"] == Rule((), None, 1)


def test_transposed_weights_and_linear_layers_share_a_type():
    report = report_of(("linear", (8, 3), Role.MLP_UP, 0), ("conv1d", (3, 8), Role.MLP_UP, 1))
    averages = {"linear": {(0,): 0.1, (1,): 2.0, (0, 1): 0.1}, "conv1d": {(0,): 4.0, (1,): 0.3, (0, 1): 0.1}}
    rules = derive_rules(report, averages)
    assert rules.rules["mlp_up"] == Rule((1,), 3.0, 2)
    assert [rules.layout_for(p).dims for p in report.parameters] == [(1,), (0,)]


def test_convolutions_of_1x1_and_3x3_share_a_type():
    report = report_of(("three", (8, 4, 3, 3), Role.CONV, 0), ("one", (8, 4, 1, 1), Role.CONV, 0))
    three = {(0,): 1.0, (1,): 2.0, (2, 3): 5.0, (1, 2, 3): 4.0, (0, 1, 2, 3): 0.5}
    one = {(0,): 1.0, (1,): 8.0, (0, 1): 0.5}
    ratios = group_ratios(report, {"three": three, "one": one})["conv_4d"]
    assert ratios[(1, 2, 3)] == {"three": 4.0, "one": 8.0}
    assert ratios[(2, 3)] == {"three": 5.0}  # for a 1x1 kernel that is no average
    rules = derive_rules(report, {"three": three, "one": one})
    assert rules.rules["conv_4d"] == Rule((1, 2, 3), 6.0, 2)


def test_kernels_go_with_their_inputs():
    report = report_of(("grey", (8, 1, 3, 3), Role.FIRST_CONV, 0), ("patches", (8, 3, 4, 4), Role.PATCH_EMBEDDING, 0))
    grey = {(0,): 1.5, (2,): 90.0, (3,): 80.0, (2, 3): 20.0, (0, 2): 1.2, (0, 2, 3): 1.1}
    patches = {(0,): 0.1, (1,): 0.5, (2,): 9.0, (2, 3): 7.0, (1, 2, 3): 0.4, (0, 1, 2, 3): 0.1}
    rules = derive_rules(report, {"grey": grey, "patches": patches}).rules
    assert rules["first_conv_4d"] == Rule((1, 2, 3), 20.0, 1)  # for images with more channels as well
    assert rules["patch_embedding_4d"] == Rule((), 0.5 - 0.1, 1)


@pytest.mark.parametrize(
    ("ratios", "rule"),
    [
        ({(0,): 0.4, (1,): 0.8, (0, 1): 0.3, "crossed": 9.0}, Rule((1,), 9.0, 1, (0,))),
        ({(0,): 0.4, (1,): 2.0, (0, 1): 0.3, "crossed": 9.0}, Rule((1,), 2.0, 1)),  # rows do, and are fewer
        ({(0,): 1.1, (1,): 2.0, (0, 1): 1.05, "crossed": 9.0}, Rule((0,), 1.1, 1)),  # columns are fewer still; one number is too few
        ({(0,): 0.4, (1,): 0.8, (0, 1): 0.3, "crossed": 0.9}, Rule((), 0.9, 1)),
        ({(0,): 0.4, (1,): 2.0, (0, 1): 0.3}, Rule((1,), 2.0, 1)),
        ({(0,): math.nan, (1,): math.nan, (0, 1): math.nan, "crossed": math.nan}, Rule((), None, 1)),
    ],
)
def test_the_cheapest_of_rows_columns_and_both(ratios, rule):
    report = report_of(("w", (8, 3), Role.LINEAR, 0))
    assert derive_rules(report, {"w": dict(ratios)}, factored=True).rules["linear"] == rule
    assert derive_rules(report, {"w": ratios}).rules["linear"].crossed is None  # SlimAdam's own cross nothing


def test_both_of_layers_of_a_type():
    """Stored either way, of any kernel: the rule of the largest, counted lines first, averaged over all."""
    report = report_of(
        ("linear", (8, 3), Role.MLP_UP, 0), ("conv1d", (4, 9), Role.MLP_UP, 1), ("bias", (8,), Role.BIAS, 0),
        ("three", (8, 4, 3, 3), Role.CONV, 0), ("one", (9, 5, 1, 1), Role.CONV, 0),
    )  # fmt: skip
    low = {(0,): 0.1, (1,): 0.2, (0, 1): 0.1}
    kernels = {(0,): 0.1, (2, 3): 99.0, (1, 2, 3): 0.2, (0, 1, 2, 3): 0.1}
    averages = {
        "linear": {**low, "crossed": 2.0}, "conv1d": {**low, "crossed": 4.0}, "bias": {(0,): 9.0},
        "three": {**kernels, "crossed": 5.0}, "one": {**low, "crossed": 7.0},
    }  # fmt: skip
    rules = derive_rules(report, averages, factored=True)
    assert rules.rules["mlp_up"] == Rule((1,), 3.0, 2, (0,))
    assert rules.rules["conv_4d"] == Rule((1, 2, 3), 6.0, 2, (0, 2, 3))
    assert rules.rules["bias"] == Rule((), 9.0, 1)
    layouts = {p.name: rules.layout_for(p) for p in report.parameters}
    assert layouts["linear"] == BlockLayout.factored((8, 3))
    assert layouts["conv1d"] == BlockLayout.factored((4, 9), 1, 0)
    assert layouts["three"] == BlockLayout.factored((8, 4, 3, 3))
    assert layouts["one"] == BlockLayout.factored((9, 5, 1, 1))


def test_nothing_measured():
    report = report_of(("w", (4, 3), Role.LINEAR, 0))
    with pytest.raises(ValueError, match="Measure more often"):
        derive_rules(report, {"other": {(0,): 1.0}})
    with pytest.raises(ValueError, match="never negative"):
        derive_rules(report, {"w": {(0,): 1.0}}, cutoff=-1)
