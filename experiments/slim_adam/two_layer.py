"""The two-layer linear model of SlimAdam's experiment on vocabularies: an embedding and an output layer, with nothing between."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from recipes.language.model import LanguageModel


class TwoLayer(nn.Module):
    """Logits of the next token, from the present one alone.

    Args:
        vocab_size: Number of tokens.
        width: Size of a token's vector.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        nn.init.trunc_normal_(self.token_embedding.weight, std=1.0)
        nn.init.trunc_normal_(self.lm_head.weight, std=width**-0.5, a=-2 * width**-0.5, b=2 * width**-0.5)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, of shape (batch, length, vocabulary).

        Args:
            tokens: Tokens, of shape (batch, length).
        """
        return self.lm_head(self.token_embedding(tokens))


class TwoLayerModel(LanguageModel):
    """Train the two-layer model (Kalra et al. 2025, Section 4.1 and Appendix G).

    Args:
        vocab_size: Number of tokens.
        context: Tokens of a window.
        width: Size of a token's vector.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    def __init__(self, vocab_size: int = 256, context: int = 32, width: int = 64, **optimizer_args: Any) -> None:
        super().__init__(vocab_size, context, **optimizer_args)
        self.save_hyperparameters()
        self.net = TwoLayer(vocab_size, width)
