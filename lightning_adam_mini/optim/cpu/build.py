"""Compile the kernel with the system's C++ compiler, once a machine."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernel.cpp")
_FLAGS = ("-O3", "-mprefer-vector-width=512", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
CACHE = "LIGHTNING_ADAM_MINI_CACHE"


@lru_cache(maxsize=1)
def load_kernel() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none.

    It is compiled for this machine's processor by ``$CXX``, ``c++``, ``g++`` or ``clang++``, and kept in ``$LIGHTNING_ADAM_MINI_CACHE`` or
    the user's cache folder.
    """
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    if compiler is None:
        return "there is no C++ compiler: install g++ or clang++, or name one in the environment variable CXX"
    key = hashlib.sha256("\0".join((_SOURCE.read_text(), compiler, *_FLAGS, _processor())).encode()).hexdigest()[:16]
    try:
        library = _cache_folder() / f"adam_mini_{key}.so"
        if not library.exists():
            _compile(compiler, library)
        kernel = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None)
        return f"the kernel could not be compiled: {error}" + (f"\n{output}" if output else "")
    kernel.adam_mini_step.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
    kernel.adam_mini_step.restype = None
    return kernel


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for flags in (("-march=native", *_FLAGS), _FLAGS):  # not every compiler knows the machine it runs on
            done = subprocess.run([compiler, *flags, str(_SOURCE), "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        done.check_returncode()
        made.replace(library)  # whole or not at all, whatever other processes do


def _cache_folder() -> Path:
    """A folder of this user's own, because what lies in it is run."""
    base = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_adam_mini"
    folder = Path(base)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="lightning_adam_mini_"))


def _processor() -> str:
    """What tells processors apart that share a cache folder: instructions of one may be illegal on another."""
    info = Path("/proc/cpuinfo")
    flags = [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))][:1] if info.exists() else []
    return " ".join((platform.system(), platform.machine(), platform.processor(), *flags))
