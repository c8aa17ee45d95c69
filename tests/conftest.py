"""What holds for all tests."""

import os

# The tests' tensors are tiny: more threads would only wait for each other, above all on a machine that does other work too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
