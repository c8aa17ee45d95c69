"""Every test works in an empty folder, on one thread, with a model of three small tensors in the place of the real ones."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import options
from benchmarks.workloads import Tensors, Workload


def classify(model, batch):
    return cross_entropy(model(torch.randn(batch, 8)), torch.randint(4, (batch,)))


SMALL = Workload("small", "A small network", lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), classify, batch=2)
LIST = Workload("list", "A short list", lambda: Tensors([(4,), (3, 5)]))


@pytest.fixture(autouse=True)
def small_workloads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "WORKLOADS", (SMALL, LIST))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
