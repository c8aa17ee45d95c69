"""What holds for all tests."""

import os

# The tests' tensors are tiny: more threads would only wait for each other, above all on a machine that does other work too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# On processors that have AVX2 and no AVX-512, oneDNN 3.12 (in torch 2.14) corrupts memory in convolutions of very narrow networks, without
# this package too. It has to be known before oneDNN's first use, and to the processes that tests start.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

# Without a GPU, Triton's kernels run in its interpreter, which must be known before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    """Here, since pytest imports what pyproject.toml names before the lines above."""
    config.addinivalue_line("filterwarnings", "error::lightning_adam_mini.AdamMiniWarning")
