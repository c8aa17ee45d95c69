"""The memory figures that the Adam-mini paper prints (its Tables 1 and 5), and the same counted from the architectures.

The paper counts the optimizer's state in float32, 4 bytes per number, in GB of 1e9 bytes. Its Table 1 is of version 1, which keeps a
second moment for each element of the token embedding and the output layer. Why a figure differs from ours is our reading of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from lightning_adam_mini.analysis.memory import ModelMemory, count_memory
from lightning_adam_mini.detection import ModelReport
from lightning_adam_mini.detection.roles import Role

GIGABYTE = 1_000_000_000
"""The paper's GB."""


@dataclass(frozen=True)
class PaperModel:
    """A model of the paper, and what the paper prints of it.

    Attributes:
        name: Name in the paper.
        kind: transformers' ``model_type``.
        config: What differs from that type's default configuration.
        adamw: GB of AdamW's state; None if the paper does not say.
        adam_mini: GB of Adam-mini's state, version 1.
        saved: Share of AdamW's state that version 1 saves, in percent.
        embedding: Share of the parameters that are in the token embedding and the output layer, in percent.
        state_note: Why the GB differ from those counted here.
        embedding_note: Why the share of embedding and output layer differs.
        galore_rank: Rank at which it counts GaLore-mini; 0 if it does not.
        galore_saved: Share that GaLore-mini saves of GaLore's state, and of AdamW's, in percent.
    """

    name: str
    kind: str
    config: Mapping[str, Any] = field(repr=False)
    adamw: float | None = None
    adam_mini: float | None = None
    saved: float | None = None
    embedding: float | None = None
    state_note: str = ""
    embedding_note: str = ""
    galore_rank: int = 0
    galore_saved: tuple[float, float] = (0.0, 0.0)


def _llama(vocabulary: int, width: int, mlp: int, layers: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "tie_word_embeddings": False,
    }


PAPER_MODELS = (
    PaperModel(
        "GPT2-1.5B",
        "gpt2",
        # nanoGPT's vocabulary, 50,257 rounded up to a multiple of 64: with it the share of the embedding is the paper's.
        {"vocab_size": 50_304, "n_positions": 1024, "n_embd": 1600, "n_layer": 48, "n_head": 25, "tie_word_embeddings": True},
        adamw=12.48,
        adam_mini=6.56,
        saved=47.4,
        embedding=5.17,
        state_note="the paper rounds to 1.56e9 parameters: 8 bytes each are its 12.48, 4 and the embedding's 0.32 its 6.56",
        embedding_note="none, with a vocabulary of 50,304",
    ),
    PaperModel(
        "TinyLlama-1B",
        "llama",
        _llama(32_000, 2048, 5632, 22, 32, 4),
        adamw=8.80,
        adam_mini=4.92,
        saved=44.1,
        embedding=11.80,
        state_note="rounding only",
        embedding_note="from figures rounded as in Table 1: 0.52 GB of 4.40 GB are 11.8 %",
    ),
    PaperModel(
        "Llama2-7B",
        "llama",
        _llama(32_000, 4096, 11_008, 32, 32, 32),
        adamw=53.92,
        adam_mini=28.04,
        saved=48.04,
        embedding=3.80,
        state_note="the paper rounds to 6.74e9 parameters: 8 bytes each are its 53.92; its 28.04 does not fit its own 48.04 %: 28.02 would",
        embedding_note="not explained: 2 x 32,000 x 4,096 of 6.74e9 are 3.89 %; a width of 4,000 would give 3.80 %",
        galore_rank=1024,
        galore_saved=(40.0, 81.0),
    ),
    PaperModel(
        "Llama2-13B",
        "llama",
        _llama(32_000, 5120, 13_824, 40, 40, 40),
        embedding=2.02,
        embedding_note="the embedding of Llama2-7B (width 4,096, not 5,120) over 13e9 is 2.02 %",
    ),
    PaperModel(
        "Llama3-8B",
        "llama",
        _llama(128_256, 4096, 14_336, 32, 32, 8),
        embedding=13.0,
        embedding_note="rounding only",
    ),
    PaperModel(
        "Phi-3",
        "phi3",
        _llama(32_064, 3072, 8192, 32, 32, 32),
        embedding=5.18,
        embedding_note="the paper divides by the nominal 3.8e9",
    ),
    PaperModel(
        "Gemma-7B",
        "gemma",
        _llama(256_000, 3072, 24_576, 28, 16, 16) | {"head_dim": 256, "tie_word_embeddings": True},
        embedding=9.83,
        embedding_note="786e6 over 8.0e9 is 9.83 %, but the model has 8.54e9",
    ),
)
"""The models of Tables 1 and 5, from their published configurations."""


class GaLoreComparison(NamedTuple):
    """The state of a model under GaLore, in bytes.

    Attributes:
        adamw: AdamW's.
        galore: GaLore's with AdamW: embedding and output layer are not projected.
        mini: GaLore's with AdamMini, version 2.
        projected: The same without the first moments of the embedding and the output layer.
    """

    adamw: int
    galore: int
    mini: int
    projected: int


@dataclass(frozen=True)
class PaperComparison:
    """A model of the paper as it is counted here.

    Attributes:
        model: The model and the paper's figures.
        memory: Its memory in float32, with the state of AdamW and of versions 1 and 2 of Adam-mini.
        embedding: Number of elements of the token embedding and the output layer.
        galore: The model under GaLore, if the paper counts that.
    """

    model: PaperModel
    memory: ModelMemory
    embedding: int
    galore: GaLoreComparison | None = None

    @property
    def embedding_share(self) -> float:
        """Share of the parameters that are in the token embedding and the output layer, in percent."""
        return 100 * self.embedding / self.memory.elements

    def gigabytes(self, optimizer: str, partition: str = "") -> float:
        """State in the paper's GB."""
        return self.memory.state(optimizer, partition).total / GIGABYTE

    def saved(self, partition: str) -> float:
        """Share of AdamW's state that a partition saves, in percent."""
        return 100 * (1 - self.gigabytes("AdamMini", partition) / self.gigabytes("AdamW"))


def compare_with_paper(model: PaperModel) -> PaperComparison:
    """Build a model of the paper on the meta device and count it.

    Raises:
        ModuleNotFoundError: If transformers is not installed.

    Example:
        >>> tiny = PaperModel("tiny", "llama", _llama(vocabulary=100, width=16, mlp=32, layers=1, heads=2, key_value_heads=1))
        >>> comparison = compare_with_paper(tiny)
        >>> comparison.embedding, comparison.memory.elements
        (3200, 5552)
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The paper's models are built with transformers, which is not installed: pip install transformers"
        ) from error
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model.kind, **model.config))
    memory = count_memory(network, ["adam_mini_v1", "adam_mini"], dtype=torch.float32, strict=True)
    embedding, galore = _embedding(memory.report), None
    if model.galore_rank:
        combined = f"galore:rank={model.galore_rank}"
        under = count_memory(network, ["adam", "adam_mini"], dtype=torch.float32, combine=[combined])
        mini = under.state("AdamMini", "adam_mini", combined).total
        galore = GaLoreComparison(under.state("AdamW").total, under.state("AdamMini", "adam", combined).total, mini, mini - 4 * embedding)
    return PaperComparison(model, memory, embedding, galore)


def _embedding(report: ModelReport) -> int:
    tables = (p for p in report.parameters if p.role in (Role.TOKEN_EMBEDDING, Role.LM_HEAD))
    return sum(p.shape[0] * p.shape[1] for p in tables)
