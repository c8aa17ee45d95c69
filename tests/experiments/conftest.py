"""Every test works in an empty folder, on one thread."""

import re

import pytest
import torch

from tests.recipes.conftest import texts as texts


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.compiler.set_stance("default")  # --small has nothing compiled


def folded(text):
    """A text without what aligns its tables."""
    return re.sub(r" +", " ", text)
