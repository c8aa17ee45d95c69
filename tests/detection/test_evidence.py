import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_adam_mini.detection import Role, inspect_model
from lightning_adam_mini.detection.evidence import probe_attention, probe_call
from lightning_adam_mini.detection.evidence.order import write_lines
from lightning_adam_mini.detection.roles import Source
from lightning_adam_mini.detection.shown import claim_shown
from lightning_adam_mini.detection.tree import Claim, Tree
from lightning_adam_mini.lines import parse_lines
from tests.detection.evidence_models import HAND_WRITTEN, InNumpy, Linformer, Pooled, Unprojected


@pytest.fixture
def x():
    return torch.randn(2, 12, 32)


def _found(evidence):
    return {p.name: (p.axis, p.lines) for p in evidence.parameters}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_attention_that_names_do_not_tell_is_traced(name, x):
    build, truth = HAND_WRITTEN[name]
    evidence = probe_attention(build(), x)
    assert _found(evidence) == truth
    assert evidence.not_seen == ()


@pytest.mark.parametrize("name", [name for name in HAND_WRITTEN if name not in ("by_the_token", "manual_softmax")])
def test_training_under_autocast_is_traced_alike(name, x):
    build, truth = HAND_WRITTEN[name]
    with torch.autocast("cpu", torch.bfloat16):
        assert _found(probe_attention(build().train(), x)) == truth


def test_the_residual_stream_is_not_taken_for_queries(x):
    evidence = probe_attention(Unprojected(), x)
    assert _found(evidence) == {"to_v.weight": (0, "v:1x32"), "to_v.bias": (0, "v:1x32")}
    assert [n.reason.split(":")[0] for n in evidence.not_seen] == ["queries", "keys"]
    assert all("residual stream" in n.reason for n in evidence.not_seen)


def test_a_map_over_tokens_is_not_taken_for_keys(x):
    evidence = probe_attention(Linformer(), x)
    assert _found(evidence) == {"q.weight": (0, "q:4x8"), "q.bias": (0, "q:4x8")}
    assert {n.reason for n in evidence.not_seen} == {
        "keys: the model maps tokens, not channels",
        "values: the model maps tokens, not channels",
    }


@pytest.mark.parametrize("build", [InNumpy, Pooled])
def test_what_cannot_be_seen_is_said_and_nothing_is_claimed(build, x):
    evidence = probe_attention(build(), x)
    assert evidence.parameters == ()
    assert len(evidence.not_seen) == 1


def test_one_token_is_too_short_an_example():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 1, 8)
    evidence = probe_attention(layer, x, x, x)  # with the weights of attention, so that it is two products
    assert evidence.parameters == ()
    assert "more than one token" in evidence.not_seen[0].reason


def test_layers_alike_are_traced_once_and_say_so(x):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 3, enable_nested_tensor=False)
    evidence = probe_attention(model, x)
    reasons = [p.reason for p in evidence.parameters if p.name.endswith("in_proj_weight")]
    assert ["traced in" in reason for reason in reasons] == [False, True, True]
    assert {p.lines for p in evidence.parameters} == {"q:4x8|k:4x8|v:4x8"}


def test_tied_and_wrapped_parameters_have_their_canonical_names(x):
    layer = nn.MultiheadAttention(32, 4, batch_first=True)
    model = nn.Module()
    model.module, model.again = layer, layer
    model.forward = lambda x: model.again(x, x, x)[0]  # pyright: ignore[reportAttributeAccessIssue]
    evidence = probe_attention(torch.compile(model), x)  # pyright: ignore[reportArgumentType]
    assert set(evidence.by_name) == {f"{n}.in_proj_{what}" for n in ("module", "again") for what in ("weight", "bias")}


def test_a_step_can_be_probed_instead_of_a_forward(x):
    model = HAND_WRITTEN["talking_heads"][0]()
    evidence = probe_call(model, lambda: model(x).square().mean(), x)
    assert _found(evidence) == HAND_WRITTEN["talking_heads"][1]


def test_on_the_meta_device_it_is_the_same():
    for build, truth in HAND_WRITTEN.values():
        if build.__name__ == "Flex":
            continue
        assert _found(probe_attention(build().to("meta"), torch.zeros(2, 12, 32, device="meta"))) == truth


def test_a_model_that_does_not_run_is_one_clear_error(x):
    with pytest.raises(ValueError, match=r"Cannot probe Linear because it does not run on the example: RuntimeError: .*Give it what"):
        probe_attention(nn.Linear(8, 8), x)


def test_running_corrects_a_wrong_belief_and_confirms_a_right_one(x):
    class Misleading(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 4  # said, not done: there are two
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x):
            q, k, v = (p(x).unflatten(-1, (2, 16)).transpose(1, 2) for p in (self.k_proj, self.q_proj, self.v_proj))  # swapped
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    model = Misleading()
    before = inspect_model(model, probe=False)
    assert (before.by_name["q_proj.weight"].lines, before.by_name["q_proj.weight"].guess) == ("q:4x8", True)
    after = inspect_model(model, evidence=probe_attention(model, x))
    assert after == inspect_model(model, x)
    weight, bias = after.by_name["q_proj.weight"], after.by_name["q_proj.bias"]
    assert (weight.role, weight.lines, weight.guess) == (Role.KEY, "k:2x16", False)
    assert "believed before: query q:4x8" in weight.reason
    assert (bias.role, bias.owner, bias.lines) == (Role.BIAS, Role.KEY, "k:2x16")
    assert after.by_name["v_proj.weight"].reason.endswith("confirmed by running")
    assert {p.name for p in after.parameters if p.owner != before.by_name[p.name].owner} == {
        f"{n}_proj.{what}" for n in "qk" for what in ("weight", "bias")
    }


def test_where_running_contradicts_a_known_module_it_is_a_guess_with_what_running_showed(x):
    class KeysFirst(nn.MultiheadAttention):  # known by its class, but its forward takes keys from the first lines
        def forward(self, x):
            k, q, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in F.linear(x, self.in_proj_weight).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    model = KeysFirst(32, 4, batch_first=True)
    known = inspect_model(model).by_name["in_proj_weight"]
    assert (known.source, known.lines, known.guess) == (Source.KNOWN, "q:4x8|k:4x8|v:4x8", False)
    shown = inspect_model(model, x).by_name["in_proj_weight"]
    assert (shown.source, shown.lines, shown.guess) == (Source.EVIDENCE, "k:4x8|q:4x8|v:4x8", True)
    assert "believed before: qkv q:4x8|k:4x8|v:4x8" in shown.reason


def test_what_was_not_seen_is_left_alone(x):
    assert inspect_model(Pooled(), x) == inspect_model(Pooled())


def test_running_keeps_the_names_of_lines_that_feed_no_attention(x):
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(32, 64 + 96)

        def forward(self, x):
            h, qkv = self.wide(x).split([64, 96], -1)
            q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in qkv.chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) + h[..., :32]

    model = Parallel()
    tree = Tree.of(model)
    slot = tree.slots[0]
    slot.add(Claim(Source.STRUCTURE, Role.QKV, "a fused projection", lines="mlp_up:64|q:8x4|k:8x4|v:8x4"))
    claim_shown(tree, probe_attention(model, x))
    shown = slot.claim
    assert shown.lines == "mlp_up:64|q:4x8|k:4x8|v:4x8"


@pytest.mark.parametrize("text", ["q:2x3|k:1x3|n:2", "4*(q:2x3|k:1x3|v:1x3)", "q:2x4t|k:2x4t", "3*[q,k,v]x4", "n:5|k:1x2", "v:6", "q:3x1"])
def test_a_line_order_is_written_as_it_is_read(text):
    assert write_lines(parse_lines(text).expand()) == text


def test_a_line_order_without_a_short_form_is_none():
    assert write_lines([("q", 0), ("q", 1), ("q", 1), ("q", 0)]) is None
