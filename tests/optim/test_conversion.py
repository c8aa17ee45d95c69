"""States that were written with other blocks, by AdamMini or by torch."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout, to_adamw_state_dict

SHAPE = (12, 5)
LAYOUTS = {
    "per_parameter": BlockLayout.per_parameter(SHAPE),
    "rows": BlockLayout.each_line(SHAPE),
    "heads": BlockLayout.grouped(SHAPE, "q:2x6"),
    "whole": BlockLayout.whole(SHAPE),
}


def run(optimizer, p, steps, seed=0):
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * 1000 + step)
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def adam_mini(kind, dtype=torch.float32, **kwargs):
    p = nn.Parameter(torch.arange(60.0).reshape(SHAPE).to(dtype))
    return AdamMini([("w", p)], layouts={"w": LAYOUTS[kind]}, **kwargs), p


def block_mean(v, kind):
    """Blocks of the 12 x 5 tensor, averaged by hand."""
    v = v.double().expand(SHAPE)
    return {
        "per_parameter": lambda: v,
        "rows": lambda: v.mean(1, keepdim=True).expand(SHAPE),
        "heads": lambda: torch.stack([v[:6].mean(), v[6:].mean()]).repeat_interleave(6)[:, None].expand(SHAPE),
        "whole": lambda: v.mean().expand(SHAPE),
    }[kind]()


@pytest.mark.parametrize("reference_class", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_torch_state_is_averaged_into_blocks(kind, reference_class):
    q = nn.Parameter(torch.arange(60.0).reshape(SHAPE))
    theirs = reference_class([q], lr=0.1, fused=True)
    run(theirs, q, 5)
    ours, p = adam_mini(kind)
    if kind == "per_parameter":
        ours.load_state_dict(theirs.state_dict())
    else:
        with pytest.warns(AdamMiniWarning, match="1 parameter .'w'.; their second moments were averaged"):
            ours.load_state_dict(theirs.state_dict())
    expected = block_mean(theirs.state[q]["exp_avg_sq"], kind)
    torch.testing.assert_close(ours.second_moments()["w"].double().expand(SHAPE), expected, rtol=1e-6, atol=0)
    assert ours.layouts["w"] == LAYOUTS[kind]
    assert ours.param_groups[0]["fused"] is None
    assert ours.param_groups[0]["lr"] == 0.1
    run(ours, p, 1)


def test_torch_state_continues_as_torch_where_blocks_are_parameters():
    q = nn.Parameter(torch.arange(60.0).reshape(SHAPE))
    theirs = torch.optim.AdamW([q])
    run(theirs, q, 5)
    ours, p = adam_mini("per_parameter")
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))  # torch's loading shares tensors
    with torch.no_grad():
        p.copy_(q)
    run(theirs, q, 5, seed=1), run(ours, p, 5, seed=1)
    assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("fused", [False, True])
def test_adamw_takes_over_with_second_moments_spread_and_gives_them_back_exactly(kind, dtype, fused):
    ours, p = adam_mini(kind, dtype)
    run(ours, p, 5)
    file = io.BytesIO()
    torch.save(to_adamw_state_dict(ours.state_dict()), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    q = nn.Parameter(p.detach().clone())
    theirs = torch.optim.AdamW([q], fused=fused)
    theirs.load_state_dict(copy.deepcopy(state))
    torch.testing.assert_close(
        theirs.state[q]["exp_avg_sq"].double(), ours.second_moments()["w"].to(dtype).double().expand(SHAPE), rtol=0, atol=0
    )
    assert theirs.state[q]["exp_avg_sq"].dtype == dtype
    run(theirs, q, 3, seed=1)  # in-place updates of a broadcast view would raise

    back, _ = adam_mini(kind, dtype)
    back.load_state_dict(state)
    # The mean of equal numbers is that number in twice their precision; a float64 has only its own.
    rtol = 1e-15 if dtype == torch.float64 else 0.0
    torch.testing.assert_close(back.second_moments()["w"], ours.second_moments()["w"], rtol=rtol, atol=0.0)


def test_state_for_adamw_is_small_on_disk():
    shape = (400, 500)
    p = nn.Parameter(torch.zeros(shape))
    optimizer = AdamMini([("w", p)], layouts={"w": BlockLayout.grouped(shape, "q:4x100")})
    p.grad = torch.ones(shape)
    optimizer.step()
    file = io.BytesIO()
    torch.save(to_adamw_state_dict(optimizer.state_dict()), file)
    assert file.tell() < 1.02 * 4 * p.numel() + 400 * 8 + 5000  # the first moment, a number per row, torch's own overhead


@pytest.mark.parametrize(
    ("saved", "present", "how"),
    [("rows", "whole", "averaged"), ("rows", "heads", "averaged"), ("whole", "rows", "spread"), ("heads", "per_parameter", "spread")],
)
def test_finer_blocks_are_averaged_and_coarser_ones_spread(saved, present, how):
    a, p = adam_mini(saved)
    run(a, p, 5)
    b, _ = adam_mini(present)
    with pytest.warns(AdamMiniWarning, match=how):
        b.load_state_dict(a.state_dict())
    expected = block_mean(a.second_moments()["w"], present)
    torch.testing.assert_close(b.second_moments()["w"].double().expand(SHAPE), expected, rtol=1e-6, atol=0)


def test_averaging_is_what_coarser_blocks_would_have_learned():
    fine, p = adam_mini("rows", lr=0.0)
    coarse, q = adam_mini("whole", lr=0.0)
    run(fine, p, 20), run(coarse, q, 20)
    loaded, _ = adam_mini("whole", lr=0.0)
    with pytest.warns(AdamMiniWarning):
        loaded.load_state_dict(fine.state_dict())
    torch.testing.assert_close(loaded.second_moments()["w"], coarse.second_moments()["w"], rtol=1e-5, atol=0)


def refused(optimizer, state, message):
    before = {k: v.clone() for k, v in optimizer.second_moments().items()}
    group = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert all(torch.equal(before[k], v) for k, v in optimizer.second_moments().items())
    assert optimizer.param_groups[0] == group


def test_blocks_neither_finer_nor_coarser_are_refused():
    p = nn.Parameter(torch.zeros(SHAPE))
    columns = AdamMini([("w", p)], layouts={"w": BlockLayout.each_line(SHAPE, axis=1)}, lr=0.7)
    run(columns, p, 2)
    rows, q = adam_mini("rows")
    run(rows, q, 1)
    refused(rows, columns.state_dict(), r"parameter 'w' has blocks .mean over dim 0. that are neither finer nor coarser")


def test_conversion_can_be_forbidden():
    whole, p = adam_mini("whole")
    run(whole, p, 2)
    rows, q = adam_mini("rows", convert_state=False)
    run(rows, q, 1)
    refused(rows, whole.state_dict(), r"'w' has other blocks .one block. than the present ones .*forbidden .convert_state=False")
    rows.load_state_dict(rows.state_dict())


def test_amsgrad_other_models_and_other_optimizers_are_refused():
    ours, p = adam_mini("rows")
    run(ours, p, 1)
    q = nn.Parameter(torch.zeros(SHAPE))
    amsgrad, sgd = torch.optim.AdamW([q], amsgrad=True), torch.optim.SGD([q], momentum=0.9)
    run(amsgrad, q, 1), run(sgd, q, 1)
    refused(ours, amsgrad.state_dict(), "amsgrad=True")
    refused(ours, sgd.state_dict(), "The loaded state has no betas, because another kind of optimizer wrote it")
    r = nn.Parameter(torch.zeros(3, 5))
    smaller = torch.optim.AdamW([r])
    run(smaller, r, 1)
    refused(ours, smaller.state_dict(), r"parameter 'w' is for shape \(3, 5\), but the parameter has shape \(12, 5\)")
    more = torch.optim.AdamW([q, nn.Parameter(torch.zeros(1))])
    refused(ours, more.state_dict(), "of 2 parameters, but the optimizer has 1")
    broken = ours.state_dict()
    broken["state"][0] = {**broken["state"][0], "exp_avg_sq": torch.zeros(7)}
    refused(ours, broken, r"second moment of parameter 'w' has shape \(7,\)")


def test_adamw_that_resumed_from_us_is_adamw_again():
    """torch keeps our description of blocks in its groups; what it writes later is per parameter all the same."""
    ours, p = adam_mini("whole")
    run(ours, p, 2)
    q = nn.Parameter(p.detach().clone())
    theirs = torch.optim.AdamW([q])
    theirs.load_state_dict(to_adamw_state_dict(ours.state_dict()))
    run(theirs, q, 3)
    back, _ = adam_mini("whole")
    with pytest.warns(AdamMiniWarning, match="averaged"):
        back.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(back.second_moments()["w"].double().expand(SHAPE), block_mean(theirs.state[q]["exp_avg_sq"], "whole"))
