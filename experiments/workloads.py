"""What the optimizers step: models, and lists of tensors, of the sizes that the experiments ask about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Workload:
    """A model to step, and to train.

    Args:
        name: Its name on the command line.
        title: How tables call it.
        build: Makes it.
        loss: Forward pass on a batch of so many random examples; none for what is no network.
        batch: Examples a step, for ``training-step`` on a CPU.
        example: What an example is.
        only_cuda: Whether it is too large for a default run on a CPU.
        default: Whether it is part of a default run.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor] | None = None
    batch: int = 1
    example: str = ""
    only_cuda: bool = False
    default: bool = True

    def make(self, device: torch.device) -> nn.Module:
        """Build it on a device, from a fixed seed.

        Args:
            device: Where.
        """
        torch.manual_seed(0)
        with device:
            return self.build().to(device)


class Tensors(nn.Module):
    """Parameters and nothing else.

    Args:
        shapes: Their shapes.
        known_blocks: What shares a second moment, by pattern of names, where detection cannot know it.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], known_blocks: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.known_blocks = known_blocks
        self.tensors = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes])


def rows(total: int, count: int) -> Workload:
    """Return so many equal matrices of so many elements in all, with a block a row, as most of a transformer's.

    Args:
        total: Elements of all of them together.
        count: How many; a divisor of `total`.

    Example:
        >>> [tuple(p.shape) for p in rows(64, 4).build().parameters()]
        [(4, 4), (4, 4), (4, 4), (4, 4)]
    """
    each = total // count
    height = 2 ** (int(math.log2(each)) // 2)
    return Workload(
        name=f"rows_{total}_{count}",
        title=f"{count:,} tensors, {total:,} parameters",
        build=lambda: Tensors([(height, each // height)] * count, {"*": "line"}),
    )


def add_random_gradients(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a gradient.

    Args:
        model: Whose parameters.
        seed: Seed of the values.
    """
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter).mul_(0.01)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def _llama(layers: int, width: int, hidden: int, heads: int, kv_heads: int, vocabulary: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _gpt2(layers: int, width: int, heads: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads, use_cache=False))


def _classify(model: nn.Module, batch: int) -> Tensor:
    device = next(model.parameters()).device
    images = torch.randn(batch, 3, 224, 224, device=device)
    return cross_entropy(model(images), torch.randint(1000, (batch,), device=device))


def _next_token(length: int) -> Callable[[nn.Module, int], Tensor]:
    def loss(model: nn.Module, batch: int) -> Tensor:
        tokens = torch.randint(1000, (batch, length), device=next(model.parameters()).device)
        return model(input_ids=tokens, labels=tokens).loss

    return loss


WORKLOADS = (
    Workload("resnet18", "ResNet18 (timm)", lambda: _timm("resnet18"), _classify, batch=4, example="image of 224x224"),
    Workload(
        "vit_small",
        "ViT-S/16 (timm)",
        lambda: _timm("vit_small_patch16_224"),
        _classify,
        batch=4,
        example="image of 224x224",
    ),
    Workload(
        "gpt_60m",
        "GPT 60M (Llama's layers)",
        lambda: _llama(layers=8, width=512, hidden=1536, heads=8, kv_heads=8, vocabulary=32000),
        _next_token(256),
        example="sequence of 256 tokens",
    ),
    Workload(
        "gpt2_60m",
        "GPT 60M (GPT-2's layers)",
        lambda: _gpt2(layers=8, width=576, heads=9),
        _next_token(256),
        example="sequence of 256 tokens",
        default=False,
    ),
    Workload("tiny", "1,000 tiny tensors", lambda: Tensors([(64,), (16, 16)] * 500)),
    Workload(
        "llama_1b",
        "Llama 1B",
        lambda: _llama(layers=22, width=2048, hidden=5632, heads=32, kv_heads=4, vocabulary=32000),
        _next_token(512),
        example="sequence of 512 tokens",
        only_cuda=True,
    ),
)


def _classify_vectors(model: nn.Module, batch: int) -> Tensor:
    return cross_entropy(model(torch.randn(batch, 8)), torch.randint(4, (batch,)))


TOYS = (
    Workload("small", "A small network", lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), _classify_vectors, batch=2),
    Workload("list", "A short list", lambda: Tensors([(4,), (3, 5)])),
)
"""For ``--small``."""
