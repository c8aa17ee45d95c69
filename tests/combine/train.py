"""A small model with every kind of parameter, and gradients for it."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_adam_mini import AdamMini, partition_model


class Net(nn.Module):
    """An embedding, an attention, an MLP whose matrices are wide and tall, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)).mean(1))

    def loss(self, seed=0):
        tokens = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(seed))
        with sdpa_kernel(SDPBackend.MATH):  # which can be differentiated twice
            return nn.functional.cross_entropy(self(tokens), tokens.sum(1) % 3)


def make(model, partition="auto", **options):
    """An AdamMini of all parameters of a model."""
    return AdamMini(model.named_parameters(), layouts=partition_model(model, partition), **{"lr": 0.01, **options})


def gradients(of, seed):
    """Give parameters gradients that a seed says, as backward would; return them by name."""
    named = of.named_parameters() if isinstance(of, nn.Module) else of.parameter_names().items()
    pairs = [pair if isinstance(pair[0], str) else pair[::-1] for pair in named]
    generator = torch.Generator().manual_seed(seed)
    for _, p in pairs:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    return {name: p.grad.clone() for name, p in pairs}


def train(model, optimizer, steps=3, begin=0):
    """Take steps with gradients that the steps' numbers say."""
    for step in range(begin, begin + steps):
        gradients(model, step)
        optimizer.step()
    return optimizer
