"""The compiled loop's border to the machine: what is run was compiled by this user and is whole, and nothing there stops a step."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout
from lightning_adam_mini.optim.backends.cpp import build

pytestmark = pytest.mark.skipif(isinstance(build.load_kernel(), str), reason=f"no compiled loop here: {build.load_kernel()}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache folder that holds the compiled loop: copies of what was loaded, because compiling takes long."""
    folder = tmp_path_factory.mktemp("compiled")
    library = Path(build.load_kernel()._name)
    for file in (library, library.with_suffix(".sha256")):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def cache(compiled, tmp_path, monkeypatch):
    """A copy of it, in which loading looks."""
    tmp_path.chmod(0o700)
    for file in compiled.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).chmod(0o700)
    monkeypatch.setenv(build.CACHE, str(tmp_path))
    build.load_kernel.cache_clear()
    yield tmp_path
    build.load_kernel.cache_clear()


def the_library(folder):
    (file,) = folder.glob("*.so")
    return file


def compiler(monkeypatch, folder, text):
    """Put a compiler of our own in the way."""
    script = Path(folder) / "compiler"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def make():
    p = nn.Parameter(torch.ones(8, 4))
    p.grad = torch.ones(8, 4)
    return p, AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((8, 4))})


def step(p, optimizer):
    optimizer.step()
    return p.detach().clone()


def test_what_was_compiled_is_found_again_in_silence(cache, monkeypatch):
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not isinstance(build.load_kernel(), str)
    assert bool((step(*make()) < 1).all())
    assert stat.S_IMODE(the_library(cache).stat().st_mode) == 0o700


def test_with_another_header_it_is_another_kernel(cache, monkeypatch, tmp_path):
    header = build._SOURCES[-1]
    assert f'#include "{header.name}"' in build._SOURCE.read_text()
    changed = tmp_path / header.name
    changed.write_text(header.read_text() + "// changed")
    monkeypatch.setattr(build, "_SOURCES", [*build._SOURCES[:-1], changed])
    wanted = []
    monkeypatch.setattr(build, "_compile", lambda compiler, library: wanted.append(library))
    assert isinstance(build.load_kernel(), str)
    assert [library.exists() for library in wanted] == [False]


def truncated(file):
    file.write_bytes(file.read_bytes()[:5000])


def other_bytes(file):
    file.write_bytes(b"\x7fELF and then nothing")


def without_hash(file):
    file.with_suffix(".sha256").unlink()


def writable_by_others(file):
    file.chmod(0o777)


def a_link(file):
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


def not_a_library_though_its_hash_is_right(file):
    file.write_bytes(b"not a library")
    file.with_suffix(".sha256").write_text(build._digest(file))


DAMAGES = [truncated, other_bytes, without_hash, writable_by_others, a_link, not_a_library_though_its_hash_is_right]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_file_that_cannot_be_trusted_is_made_anew_and_that_is_told(cache, compiled, monkeypatch, damage):
    damage(the_library(cache))
    good = the_library(compiled)

    def copy(compiler, library):  # in place of six seconds
        library.unlink()
        library.write_bytes(good.read_bytes())
        library.chmod(0o700)
        library.with_suffix(".sha256").write_text(build._digest(library))

    monkeypatch.setattr(build, "_compile", copy)
    with pytest.warns(AdamMiniWarning, match="made anew, because"):
        assert not isinstance(build.load_kernel(), str)
    build.load_kernel.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not isinstance(build.load_kernel(), str)


def test_a_folder_that_others_may_write_to_is_not_used(cache):
    cache.chmod(0o777)
    with pytest.warns(AdamMiniWarning, match="chmod go-w"):
        folder = build._cache_folder()
    assert folder != cache
    assert build._is_ours(folder)


def no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(build.CACHE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


def test_without_a_home_a_folder_of_this_process_serves(cache, monkeypatch):
    no_home(monkeypatch)
    assert build._is_ours(build._cache_folder())


TROUBLE = {
    "it hangs": ("sleep 60", "timed out after"),
    "it prints what is no text, and fails": ("printf '\\377\\376 garbage' >&2; exit 1", "garbage"),
    "it says that all is well, and makes nothing": ("exit 0", "No such file"),
    "it makes something else": ('for a; do last=$a; done; echo hello > "$last"', "invalid ELF|file too short"),
    "it prints without end": ("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1", "xxx"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_compiler_in_trouble_stops_no_step(trouble, cache, monkeypatch, tmp_path_factory):
    text, message = TROUBLE[trouble]
    compiler(monkeypatch, tmp_path_factory.mktemp("bin"), text)
    monkeypatch.setattr(build, "_SECONDS", 1)
    p, optimizer = make()
    with pytest.warns(AdamMiniWarning, match=rf"(?s)five times as long, because its compiled loop cannot be used.*({message})") as told:
        first, second = [step(p, optimizer) for _ in range(2)]
    assert bool((second < first).all() and (first < 1).all())
    ours = [str(w.message) for w in told if "five times" in str(w.message)]
    assert len(ours) == 1, "told once"
    assert len(ours[0]) < 4000


def test_the_first_compilation_is_announced(cache, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(build.CACHE, str(tmp_path / "new"))
    monkeypatch.setenv("CXX", "/bin/false")
    with caplog.at_level("WARNING"):
        assert isinstance(build.load_kernel(), str)
    assert "takes some seconds" in caplog.text
