"""The networks whose Hessians are shown, and their data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recipes.language.gpt import GPT

LAYERS, WIDTH, HEADS, LENGTH = 4, 32, 4, 42
Loss = Callable[[nn.Module], Tensor]


def transformer(seed: int) -> tuple[GPT, Loss]:
    """Return the paper's transformer of 4 layers, width 32 and 4 heads, and its loss on a random binary sequence of length 42.

    Args:
        seed: Of the weights and of the sequence.
    """
    torch.manual_seed(seed)
    model = GPT(vocab_size=2, context=LENGTH, layers=LAYERS, heads=HEADS, width=WIDTH, tied=False)
    sequence = torch.randint(2, (1, LENGTH + 1))

    def loss(module: nn.Module) -> Tensor:
        return cross_entropy(module(sequence[:, :-1]).flatten(0, 1), sequence[:, 1:].flatten())

    return model, loss


class CNN(nn.Module):
    """Four 3x3 convolutions with ReLU, and an output layer on the mean of the last one's features."""

    def __init__(self, channels: tuple[int, ...] = (8, 8, 12, 12)) -> None:
        super().__init__()
        pairs = zip((1, *channels), channels, strict=False)
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairs])
        self.fc = nn.Linear(channels[-1], 10, bias=False)
        for conv in self.convs.children():
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images of shape (batch, 1, 8, 8)."""
        for conv in self.convs:
            x = conv(x).relu()
        return self.fc(x.mean((2, 3)))


def cnn(seed: int, images: int = 256) -> tuple[CNN, Loss]:
    """Return a small CNN, and its loss on handwritten digits.

    Args:
        seed: Of the weights.
        images: How many digits.
    """
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    model, (pixels, labels) = CNN(), load_digits(return_X_y=True)
    x = torch.tensor(pixels[:images], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels[:images])
    return model, lambda module: cross_entropy(module(x), y)


def train(model: nn.Module, loss: Loss, steps: int, lr: float = 1e-3) -> float:
    """Train a model in place with AdamW, and return the last loss.

    Args:
        model: The model.
        loss: Its loss.
        steps: Number of steps.
        lr: Learning rate.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return loss(model).item()
