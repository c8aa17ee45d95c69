"""A launch of a kernel that can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any


@lru_cache(maxsize=1)
def _constants_are_passed() -> bool:
    """Whether Triton's compiled kernels are called with their constants too, as they are since 3.3."""
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 3)


class Launch:
    """A launch of a kernel, which is made at once, and again with the very same arguments.

    Triton looks at each argument to find what it has compiled for such. That takes as long as all else that a small step does, and it
    would find the same again: so what was launched is called itself, as Triton's tutorials do. Where that cannot be, as in the
    interpreter, it is launched as ever.

    Args:
        kernel: A function under ``triton.jit``.
        programs: How many of it to run.
        args: Its tensors and numbers. What they hold may change from launch to launch.
        constants: What it is compiled for; its last parameters.
        num_warps: Warps of a program.
    """

    def __init__(self, kernel: Any, programs: int, args: Sequence[Any], constants: Sequence[Any] = (), *, num_warps: int) -> None:
        self._anew = partial(kernel[(programs,)], *args, *constants, num_warps=num_warps)
        self._args = (*args, *constants) if _constants_are_passed() else tuple(args)
        compiled = self._anew()
        self._compiled = compiled[(programs, 1, 1)] if hasattr(compiled, "__getitem__") else None

    def again(self, stream: int | None) -> None:
        """Launch it.

        Args:
            stream: The current stream of its device, which is the current one; None where there is none.
        """
        if self._compiled is not None:
            try:
                return self._compiled(*self._args, stream=stream)
            except TypeError:  # of a Triton that calls them otherwise: it has not been launched then
                self._compiled = None
        self._anew()
