"""Compile the kernel with the system's C++ compiler, once per machine."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from lightning_adam_mini._warnings import warn

_SOURCE = Path(__file__).with_name("kernel.cpp")
_SOURCES = [_SOURCE, *sorted(_SOURCE.parent.glob("*.h"))]
_FLAGS = ("-O3", "-mprefer-vector-width=512", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_SECONDS = 120
CACHE = "LIGHTNING_ADAM_MINI_CACHE"
FIELDS = 27
"""Numbers that the kernel takes per tensor: its ``Task``."""
OPTIONS = 7
"""Numbers that it takes per group: its ``Group``."""

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load_kernel() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none. Raises nothing.

    It is compiled for this machine's processor by ``$CXX``, ``c++``, ``g++`` or ``clang++``, and kept in ``$LIGHTNING_ADAM_MINI_CACHE`` or
    the user's cache folder. What lies there is run only if folder and file are this user's, nobody else may write to them, and the file is
    whole.
    """
    try:
        return _load()
    except Exception as error:
        output = str(getattr(error, "stderr", None) or "")
        return f"{error}" + (f"\n{output[:2000]}" if output else "")


def _load() -> ctypes.CDLL:
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler: install g++ or clang++, or name one in the environment variable CXX")
    sources = (source.read_text(encoding="utf-8") for source in _SOURCES)
    key = hashlib.sha256("\0".join((*sources, compiler, *_FLAGS, _processor())).encode()).hexdigest()[:16]
    library = _cache_folder() / f"adam_mini_{key}.so"
    problem = _distrust(library) if library.exists() else None
    if problem is None and library.exists():
        try:
            return _open(library)
        except (OSError, AttributeError, RuntimeError) as error:
            problem = str(error)
    if problem is not None:
        warn(f"The compiled loop of AdamMini in {library} is made anew, because {problem}.")
    _compile(compiler, library)
    return _open(library)


def _open(library: Path) -> ctypes.CDLL:
    kernel = ctypes.CDLL(str(library))
    kernel.adam_mini_step.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
    kernel.adam_mini_step.restype = None
    kernel.fields.restype = kernel.options.restype = ctypes.c_int64
    found = kernel.fields(), kernel.options()
    if found != (FIELDS, OPTIONS):
        raise RuntimeError(f"it takes {found} numbers per tensor and group, not {(FIELDS, OPTIONS)}")
    return kernel


def _compile(compiler: str, library: Path) -> None:
    _log.warning("Compiling AdamMini's step for this machine's CPU, once, which takes some seconds: %s", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for flags in (("-march=native", *_FLAGS), _FLAGS):  # not every compiler knows the machine it runs on
            command = [compiler, *flags, str(_SOURCE), "-o", str(made)]
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=_SECONDS,
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        made.chmod(0o700)
        digest = made.with_suffix(".sha256")
        digest.write_text(_digest(made), encoding="ascii")
        digest.replace(library.with_suffix(".sha256"))
        made.replace(library)  # whole or not at all, whatever other processes do


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _distrust(library: Path) -> str | None:
    """Why a file in the cache is not to be run; None if nothing speaks against it."""
    if not _is_ours(library):
        return "it is another user's, or others may write to it"
    digest = library.with_suffix(".sha256")
    if not digest.exists() or digest.read_text(encoding="ascii", errors="replace") != _digest(library):
        return "it is not what was compiled"
    return None


def _is_ours(path: Path) -> bool:
    """Whether a file or folder is this user's, and nobody else may write to it."""
    if not hasattr(os, "getuid"):  # Windows keeps users' folders apart
        return True
    status = path.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode)


def _cache_folder() -> Path:
    """A folder of this user's own, because what lies in it is run; one for this process alone where there is none."""
    try:
        base = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_adam_mini"
        folder = Path(base)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK) and _is_ours(folder):
            return folder
        warn(
            f"AdamMini does not keep its compiled loop in {folder}, because it is another user's, or others may write to it: it is compiled"
            f" in each process. Run 'chmod go-w {folder}', or set {CACHE} to a folder of your own."
        )
    except (OSError, RuntimeError, KeyError):  # no home, no entry in passwd, a disk that cannot be written to
        pass
    return Path(tempfile.mkdtemp(prefix="lightning_adam_mini_"))


def _processor() -> str:
    """What tells processors apart that share a cache folder: instructions of one may be illegal on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return " ".join((platform.system(), platform.machine(), platform.processor(), *flags))
