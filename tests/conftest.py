"""What holds for all tests."""

import os

# The tests' tensors are tiny: more threads would only wait for each other, above all on a machine that does other work too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU, Triton's kernels run in its interpreter, which must be known before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
