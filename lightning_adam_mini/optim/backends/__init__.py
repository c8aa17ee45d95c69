"""What steps parameters, in order of preference."""

from collections.abc import Callable

from lightning_adam_mini.optim.backends.cpp.backend import Cpp
from lightning_adam_mini.optim.backends.orthogonal import Orthogonal
from lightning_adam_mini.optim.backends.protocol import Backend as Backend
from lightning_adam_mini.optim.backends.protocol import Task as Task
from lightning_adam_mini.optim.backends.readable import Readable
from lightning_adam_mini.optim.backends.slices import Slices
from lightning_adam_mini.optim.backends.triton.backend import Triton

BACKENDS: list[Callable[[], Backend]] = [Orthogonal, Triton, Cpp, Slices, Readable]
"""The first that can step a parameter does."""
