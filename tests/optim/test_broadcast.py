"""Second moments that stay broadcast where checkpoints are copied before they are written."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_adam_mini import AdamMini, AdamMiniCallback, BlockLayout, to_adamw_state_dict
from lightning_adam_mini.optim.broadcast import BroadcastTensor

VIEWS = {
    "whole": torch.rand(1, 1).expand(60, 70),
    "rows": torch.rand(60, 1).expand(60, 70),
    "columns": torch.rand(1, 70).expand(60, 70),
    "middle": torch.rand(6, 1, 7).expand(6, 50, 7),
    "heads": torch.rand(2, 1).index_select(0, torch.arange(60) // 30).expand(60, 70),
    "empty": torch.rand(1, 3).expand(0, 3),
}
COPIES = {
    "clone": lambda t: t.clone(),
    "torch.clone": torch.clone,
    "detach": lambda t: t.detach(),
    "torch.detach": torch.detach,
    "Lightning's": lambda t: t.detach().clone(),
    "cpu": lambda t: t.cpu(),
    "to": lambda t: t.to("cpu"),
    "to, by name": lambda t: t.to(device=torch.device("cpu"), non_blocking=True, copy=True),
    "deepcopy": copy.deepcopy,
    "deepcopy in a dict": lambda t: copy.deepcopy({"a": [t]})["a"][0],
}
everyview = pytest.mark.parametrize("kind", VIEWS)


def saved_bytes(thing: Any) -> int:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.tell()


@pytest.mark.parametrize("how", COPIES)
@everyview
def test_copies_stay_broadcast(kind, how):
    plain = VIEWS[kind]
    view = plain.as_subclass(BroadcastTensor)
    for result in (COPIES[how](view), COPIES[how](COPIES[how](view))):  # copies are copied like what they are of
        assert type(result) is BroadcastTensor
        assert (result.shape, result.dtype, result.stride()) == (plain.shape, plain.dtype, plain.stride())
        assert torch.equal(result, plain)
        assert result.untyped_storage().nbytes() <= plain.untyped_storage().nbytes()
        shares = "clone" not in how and "copy" not in how and "Lightning" not in how and how != "to, by name"
        assert (result.data_ptr() == plain.data_ptr()) == (shares or not plain.numel())


def test_one_tensor_twice_is_one_tensor_twice_in_a_deep_copy():
    view = VIEWS["rows"].as_subclass(BroadcastTensor)
    a, b = copy.deepcopy([view, view])
    assert a is b


@pytest.mark.parametrize("kind", [kind for kind in VIEWS if kind != "empty"])
def test_everything_else_sees_an_ordinary_tensor(kind):
    plain = VIEWS[kind]
    view = plain.as_subclass(BroadcastTensor)
    for name, use in {
        "arithmetic": lambda t: t * 2 + 1,
        "of another": lambda t: plain + t,
        "reduction": lambda t: t.sum(dim=0),
        "index": lambda t: t[:1],
        "reshape": lambda t: t.reshape(-1),
        "contiguous": lambda t: t.contiguous(),
        "dtype": lambda t: t.double(),
        "to a dtype": lambda t: t.to(torch.float64),
        "to its own dtype": lambda t: t.to(dtype=torch.float32, device="cpu"),
        "to another": lambda t: t.to(plain),
        "dense clone": lambda t: t.clone(memory_format=torch.contiguous_format),
        "empty": lambda t: torch.zeros_like(t),
        "list": lambda t: torch.cat([t, t]),
        "into": lambda t: torch.empty(t.shape).copy_(t),
        "data": lambda t: t.data,
    }.items():
        result = use(view)
        assert type(result) is Tensor, name
        torch.testing.assert_close(result, use(plain), rtol=0, atol=0)
        if "dtype" in name or name in ("to another", "contiguous", "dense clone"):
            assert result.is_contiguous(), name
            assert result.data_ptr() != plain.data_ptr(), name
    torch.testing.assert_close(view, plain, rtol=0, atol=0)
    assert view.tolist() == plain.tolist()
    assert (view.numpy() == plain.numpy()).all()


LOAD = """
import sys, torch
tensor = torch.load(sys.argv[1], weights_only=True)
assert type(tensor) is torch.Tensor and tensor.stride() == (1, 0) and tensor.shape == (60, 70), tensor
assert not any(name.startswith("lightning_adam_mini") for name in sys.modules)
"""


def test_what_is_saved_is_an_ordinary_view(tmp_path):
    """In a process that does not import this package."""
    view = VIEWS["rows"].as_subclass(BroadcastTensor).clone()
    torch.save(view, tmp_path / "view.pt")
    assert abs((tmp_path / "view.pt").stat().st_size - saved_bytes(VIEWS["rows"].clone()[:, :1].clone().expand(60, 70))) < 100
    assert (tmp_path / "view.pt").read_bytes().count(b"lightning") == 0
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "view.pt")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "view.pt", weights_only=True), VIEWS["rows"])
    again = pickle.loads(pickle.dumps(view))
    assert type(again) is Tensor
    assert torch.equal(again, view)
    assert type(copy.copy(view)) is Tensor


# ---- states ----------------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "rows": BlockLayout.each_line((30, 40)),
    "heads": BlockLayout.grouped((24, 40), "q:2x5|k:2x5|v:4x1"),
    "whole": BlockLayout.whole((50, 9)),
    "elements": BlockLayout.per_parameter((50,)),
}


def trained(dtype: torch.dtype = torch.float32) -> tuple[AdamMini, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    params = {name: nn.Parameter(torch.randn(layout.shape, dtype=dtype)) for name, layout in LAYOUTS.items()}
    optimizer = AdamMini(params.items(), lr=0.1, layouts=LAYOUTS)
    for _ in range(3):
        feed(params)
        optimizer.step()
    return optimizer, params


def feed(params: dict[str, nn.Parameter]) -> None:
    for p in params.values():
        p.grad = torch.randn_like(p)


def lightnings_copy(checkpoint: Any) -> Any:
    return apply_to_collection(checkpoint, Tensor, lambda t: t.detach().clone())


def dcps_copy(checkpoint: Any) -> Any:
    stager = pytest.importorskip("torch.distributed.checkpoint._state_dict_stager", reason="this torch stages in another way")
    return stager.StateDictStager().stage(checkpoint)


@pytest.mark.parametrize("copied", [lightnings_copy, copy.deepcopy, dcps_copy])
def test_copies_of_states_load_as_the_states_do(copied):
    """Into AdamW, that trains from them as from dense ones, and into AdamMini, that gets its blocks back."""
    optimizer, params = trained()
    state = to_adamw_state_dict(optimizer.state_dict())
    snapshot = copied(state)
    bytes_before = saved_bytes(snapshot)
    assert bytes_before < 1.05 * saved_bytes(state)
    dense = {i: {k: v.contiguous() if v.ndim else v.clone() for k, v in entry.items()} for i, entry in state["state"].items()}
    runs = []
    for loaded in (snapshot, {**state, "state": dense}):
        twins = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
        adamw = torch.optim.AdamW(twins.values())
        adamw.load_state_dict({**loaded, "state": {i: {**entry, "step": entry["step"].clone()} for i, entry in loaded["state"].items()}})
        for entry in adamw.state.values():
            assert type(entry["exp_avg_sq"]) is Tensor
            assert entry["exp_avg_sq"].is_contiguous()
        torch.manual_seed(1)
        for _ in range(3):
            feed(twins)
            adamw.step()
        runs.append(twins)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in params)
    assert saved_bytes(snapshot) == bytes_before, "AdamW wrote to what it loaded"
    back = AdamMini(params.items(), layouts=LAYOUTS)
    back.load_state_dict(snapshot)
    for p in params.values():
        for key, value in optimizer.state[p].items():
            assert type(back.state[p][key]) is Tensor
            assert torch.equal(back.state[p][key], value)


def test_a_state_of_float32_parameters_loads_into_float64_ones():
    """AdamW casts to what the view is already, and must not write through it."""
    optimizer, params = trained()
    twins = [nn.Parameter(p.detach().double()) for p in params.values()]
    adamw = torch.optim.AdamW(twins)
    adamw.load_state_dict(to_adamw_state_dict(optimizer.state_dict()))
    feed(dict(enumerate(twins)))
    adamw.step()
    assert all(state["exp_avg_sq"].is_contiguous() for state in adamw.state.values())


def test_converting_twice_is_converting_once():
    optimizer, _ = trained()
    once = to_adamw_state_dict(optimizer.state_dict())
    twice = to_adamw_state_dict(once)
    for i, entry in once["state"].items():
        assert torch.equal(entry["exp_avg_sq"], twice["state"][i]["exp_avg_sq"])


# ---- training --------------------------------------------------------------------------------------------------------------


class Net(pl.LightningModule):
    """Large enough that its tensors, not the file's tables, are what a checkpoint is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(16, 64, generator=generator)), batch_size=4)


def fit(steps: int, root: Path, io_plugin: Any, callbacks: list[pl.Callback], resume: Path | None = None) -> tuple[Net, Path]:
    """Train with a checkpoint after each epoch, of four steps; the last one's path."""
    net = Net()
    saver = pl.callbacks.ModelCheckpoint(root, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, default_root_dir=root, plugins=[io_plugin],
        callbacks=[saver, *callbacks], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, data(), ckpt_path=resume)
    return net, root / f"step={steps}.ckpt"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("partition", "most"), [("adam_mini", 0.7), ("auto", 1.05)])
def test_checkpoints_in_the_background_are_as_small_and_resume_to_the_bit(tmp_path, partition, most):
    """Of blocks half of AdamW's; where rows and columns cross, what AdamW can load is dense."""

    def mini() -> list[pl.Callback]:
        return [AdamMiniCallback(partition, monitor=False)]

    _, whole = fit(8, tmp_path / "sync", TorchCheckpointIO(), mini())
    _, background = fit(8, tmp_path / "async", AsyncCheckpointIO(), mini())
    assert background.stat().st_size == pytest.approx(whole.stat().st_size, rel=0.05)
    _, without = fit(8, tmp_path / "without", TorchCheckpointIO(), [])
    assert background.stat().st_size < most * without.stat().st_size

    states = [torch.load(path, weights_only=False)["optimizer_states"][0]["state"] for path in (whole, background)]
    for i, entry in states[0].items():
        assert type(states[1][i]["exp_avg_sq"]) is Tensor
        assert all(torch.equal(value, states[1][i][key]) for key, value in entry.items())

    for callbacks in (mini, list):  # with the callback and without
        runs = [
            fit(12, tmp_path / f"{folder} {callbacks.__name__}", TorchCheckpointIO(), callbacks(), path)[0]
            for folder, path in (("from sync", whole), ("from async", background))
        ]
        for a, b in zip(*(run.parameters() for run in runs), strict=True):
            assert torch.equal(a, b)
        if callbacks is mini:
            uninterrupted, _ = fit(12, tmp_path / "uninterrupted", TorchCheckpointIO(), mini())
            for a, b in zip(uninterrupted.parameters(), runs[1].parameters(), strict=True):
                assert torch.equal(a, b)
