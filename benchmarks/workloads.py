"""What the optimizers step: models, and lists of tensors, of the sizes that the benchmarks ask about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_adam_mini import BlockLayout, partition_model


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
        dim: Width, which PyPI adam-mini asks for.
        heads: Attention heads, which PyPI adam-mini asks for.
        overrides: Blocks that detection cannot know, for what is no network.
        only_cuda: Whether it is too large for a default run on a CPU.
        default: Whether it is part of a default run.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor] | None = None
    batch: int = 1
    example: str = ""
    dim: int = 2048
    heads: int = 32
    overrides: Mapping[str, str] = field(default_factory=dict)
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

    def layouts(self, model: nn.Module, partition: str = "auto") -> dict[str, BlockLayout]:
        """Return AdamMini's blocks.

        Args:
            model: What `make` returned.
            partition: Their partition.
        """
        return partition_model(model, partition, overrides=dict(self.overrides) if partition == "adam_mini" else None)


class Tensors(nn.Module):
    """Parameters and nothing else.

    Args:
        shapes: Their shapes.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
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
        build=lambda: Tensors([(height, each // height)] * count),
        overrides={"*": "line"},
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
        dim=384,
        heads=6,
    ),
    Workload(
        "gpt_60m",
        "GPT 60M (Llama's layers)",
        lambda: _llama(layers=8, width=512, hidden=1536, heads=8, kv_heads=8, vocabulary=32000),
        _next_token(256),
        example="sequence of 256 tokens",
        dim=512,
        heads=8,
    ),
    Workload(
        "gpt2_60m",
        "GPT 60M (GPT-2's layers)",
        lambda: _gpt2(layers=8, width=576, heads=9),
        _next_token(256),
        example="sequence of 256 tokens",
        dim=576,
        heads=9,
        default=False,
    ),
    Workload("tiny", "1,000 tiny tensors", lambda: Tensors([(64,), (16, 16)] * 500)),
    Workload(
        "llama_1b",
        "Llama 1B",
        lambda: _llama(layers=22, width=2048, hidden=5632, heads=32, kv_heads=4, vocabulary=32000),
        _next_token(512),
        example="sequence of 512 tokens",
        dim=2048,
        heads=32,
        only_cuda=True,
    ),
)
