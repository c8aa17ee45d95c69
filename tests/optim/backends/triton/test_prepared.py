"""What holds of the prepared step of the Triton kernels alone: launches that are made again, what is sent, graphs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini
from lightning_adam_mini.optim.backends.triton import launch as launches
from lightning_adam_mini.optim.backends.triton import step as triton_step
from lightning_adam_mini.optim.backends.triton.launch import Launch
from tests.optim.backends.table import DEVICE, FEW, GPU, KINDS, TRITON, give, layouts_of, make_grads, make_params

pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not tested here")
SMALL = {name: KINDS[name] for name in FEW if KINDS[name].numbers.max() < 10}


class Compiled:
    """What a kernel that adds to a list is compiled to, called as Triton calls such: with so many arguments."""

    def __init__(self, calls, takes):
        self.calls, self.takes = calls, takes

    def __getitem__(self, grid):
        def run(*args, stream=None):
            if len(args) != self.takes:
                raise TypeError(f"function takes exactly {self.takes} arguments ({len(args)} given)")
            self.calls.append(("compiled", grid, args[:2], stream))

        return run


class Kernel:
    def __init__(self, compiled, calls):
        self.compiled, self.calls = compiled, calls

    def __getitem__(self, grid):
        def run(*args, num_warps):
            self.calls.append(("looked up", grid, args, num_warps))
            return self.compiled

        return run


@pytest.mark.parametrize("with_constants", [False, True])
def test_what_was_compiled_is_launched_again_with_what_it_takes(monkeypatch, with_constants):
    monkeypatch.setattr(launches, "_constants_are_passed", lambda: with_constants)
    calls = []
    made = Launch(Kernel(Compiled(calls, 3 if with_constants else 2), calls), 5, ("a", "b"), (64,), num_warps=4)
    made.again(7)
    made.again(8)
    again = ("compiled", (5, 1, 1), ("a", "b"))
    assert calls == [("looked up", (5,), ("a", "b", 64), 4), (*again, 7), (*again, 8)]


@pytest.mark.parametrize("compiled", [None, "of other arguments"])
def test_what_cannot_be_called_itself_is_launched_as_ever(compiled):
    calls = []
    made = Launch(Kernel(compiled and Compiled(calls, 9), calls), 5, ("a", "b"), (64,), num_warps=4)
    made.again(7)
    made.again(7)
    assert calls == 3 * [("looked up", (5,), ("a", "b", 64), 4)]


CALL = """
import inspect
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from lightning_adam_mini.optim.backends.triton import kernel
from lightning_adam_mini.optim.backends.triton.launch import Launch

class Utils:
    def get_device_properties(self, device):
        return {"max_shared_mem": 2**17}

    def load_binary(self, *args):
        return (1, 2, 3, 4, 1024)[: 5 if "n_max_threads" in inspect.getsource(CompiledKernel) else 4]

    def unload_module(self, module):
        pass

class Driver:
    utils = Utils()
    launcher_cls = staticmethod(lambda source, metadata: lambda *args: calls.append(args))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 77)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 80, 32))

calls = []
driver.set_active(Driver())
tables = [torch.zeros(100, dtype=dtype) for dtype in (torch.int64, torch.float64, torch.float64)]
for n in (1, 5, 64):
    launch = Launch(kernel.prepare, 3, (*tables, n), (64,), num_warps=2)
    launch.again(77)
    assert launch._compiled is not None
    first, again = calls
    calls.clear()
    assert len(first) == len(again) and first[:4] == again[:4] == (3, 1, 1, 77)
    assert all(a is b for i, (a, b) in enumerate(zip(first, again)) if i != 6), "but for what Triton makes anew for hooks"
"""


def test_triton_hands_its_launcher_the_same_again(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = tmp_path / "call_kernels.py"
    script.write_text(CALL)
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_what_changed_is_sent(monkeypatch):
    sent, send = [], triton_step._Batch._send
    monkeypatch.setattr(triton_step._Batch, "_send", lambda self, *tables: sent.append(tables[0].dtype) or send(self, *tables))
    params = make_params(SMALL, device=DEVICE)
    optimizer = TRITON.optimizer(params.items(), layouts_of(SMALL))
    kept = []
    for change in ("first", "none", "gradients", "options", "weights"):
        if change in ("first", "gradients"):
            kept.append([p.grad for p in params.values()])  # so that the new ones are elsewhere
            give(params, make_grads(0, SMALL))
        if change == "options":
            optimizer.param_groups[0]["lr"] = 1e-4
        if change == "weights":
            params["rows"].data = params["rows"].data.clone()
        if change != "first":
            assert optimizer._stepper._prepared is not None
        sent.clear()
        optimizer.step()
        if change != "first":
            assert sent == {"none": [], "options": [torch.float64]}.get(change, [torch.int64]), change


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prepared_step_waits_for_nothing(dtype):
    params = make_params(SMALL, device=DEVICE)
    lr = torch.tensor(1e-2, device=DEVICE, dtype=dtype)
    optimizer = AdamMini(params.items(), lr=lr, layouts=layouts_of(SMALL))
    grads = [[torch.randn_like(p) for p in params.values()] for _ in range(2)]
    for step in range(6):
        for p, grad in zip(params.values(), grads[step % 2], strict=True):
            p.grad = grad
        assert (optimizer._stepper._prepared is not None) == (step > 0)
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_steps_between_replays_of_a_graph_leave_alone_what_it_reads():
    params = make_params(SMALL, device=DEVICE)
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    ours, theirs = (AdamMini(some.items(), lr=1e-2, layouts=layouts_of(SMALL)) for some in (params, twins))

    def both(step, call):
        for name, grad in make_grads(step, SMALL).items():
            params[name].grad.copy_(grad)
            twins[name].grad.copy_(grad)
        call(), theirs.step()
        for name, p in params.items():
            torch.testing.assert_close(p, twins[name], rtol=0, atol=0, msg=f"{name} in step {step}")

    for some in (params, twins):
        give(some, make_grads(0, SMALL))
    for step in range(3):
        both(step, ours.step)
    captured = [p.grad for p in params.values()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    both(3, ours.step)  # before the graph has run once
    for step in range(4, 12):
        if step % 2:
            for p, grad in zip(params.values(), captured, strict=True):
                p.grad = grad
            both(step, graph.replay)
        else:
            for p in params.values():
                p.grad = torch.empty_like(p)
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 1e-3
            both(step, ours.step)
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 1e-2
