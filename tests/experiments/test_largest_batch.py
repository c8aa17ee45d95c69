import torch

from experiments.largest_batch import activations, kept_bytes
from experiments.workloads import TOYS

SMALL = TOYS[0]
CPU = torch.device("cpu")


def test_activations_are_those_of_the_network():
    model = SMALL.make(CPU)
    # a linear layer keeps its input (8 and 16 numbers); ReLU keeps its output, which is the second input; log_softmax 4 numbers and, of
    # 8 bytes, the target; the loss one number in all
    assert kept_bytes(SMALL, model, 4) - kept_bytes(SMALL, model, 2) == 2 * (4 * (8 + 16 + 4) + 8)
    fixed, each = activations(SMALL, model)
    assert each == 4 * (8 + 16 + 4) + 8
    assert 0 <= fixed < 16
