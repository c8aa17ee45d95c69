"""A reward model: what people prefer as a number, from pairs of texts."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from typing_extensions import override

from recipes.checkpoint import load_recipe
from recipes.language.fine_tuned import FineTunedModel
from recipes.language.gpt import GPT
from recipes.language.model import GPTModel, LanguageModel
from recipes.language.preferences import Pair
from recipes.recipe import Headline


class RewardModel(LanguageModel):
    """A GPT whose output layer gives a text one number, by its last token; the preferred text of a pair is to have the larger one.

    The loss is ``-log sigmoid(chosen - rejected)`` (Bradley and Terry's model, as in Ouyang et al. 2022); accuracy is the share of pairs in
    the right order.

    Args:
        checkpoint: A checkpoint of `GPTModel`, or of a `FineTunedModel` of one, to start from.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    headline: ClassVar[Headline] = Headline(metric="accuracy", title="accuracy", mode="max")
    learns_from: ClassVar[str] = "pairs of texts"

    def __init__(self, checkpoint: str, **optimizer_args: Any) -> None:
        base = load_language_model(checkpoint)
        super().__init__(base.vocab_size, base.context, **optimizer_args)
        self.save_hyperparameters()
        self.base = gpt_of(base, checkpoint).train()
        self.base.lm_head = nn.Linear(self.base.lm_head.in_features, 1, bias=False)
        nn.init.zeros_(self.base.lm_head.weight)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the reward of each text.

        Args:
            tokens: Tokens, of shape (batch, length).

        Returns:
            A tensor of shape (batch,).
        """
        return self.base(tokens)[:, -1, 0]

    @override
    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the loss of a batch of pairs."""
        with self.differentiable():
            margin = self(batch.chosen) - self(batch.rejected)
            loss = -logsigmoid(margin).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(margin))
        return loss

    @override
    def validation_step(self, batch: Pair, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Measure a batch of the validation set."""
        self._measure_pairs(batch, "val")

    @override
    def test_step(self, batch: Pair, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Measure a batch of the test set."""
        self._measure_pairs(batch, "test")

    @override
    def predict_step(self, batch: Pair, batch_idx: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the reward of the preferred texts, and of the others."""
        return torch.stack([self(batch.chosen), self(batch.rejected)])

    @override
    def tokens_of(self, batch: Pair) -> int:
        """Return how many tokens both texts of the pairs have."""
        return batch.chosen.numel() + batch.rejected.numel()

    def _measure_pairs(self, batch: Pair, split: str) -> None:
        margin = self(batch.chosen) - self(batch.rejected)
        self.log(f"{split}/loss", -logsigmoid(margin).mean(), batch_size=len(margin))
        self.log(f"{split}/accuracy", (margin > 0).float().mean(), prog_bar=True, batch_size=len(margin))


def load_language_model(checkpoint: str) -> LanguageModel:
    """Return the language model of a checkpoint, in evaluation mode.

    Args:
        checkpoint: Its file, of `GPTModel` or of `FineTunedModel`.
    """
    return load_recipe((GPTModel, FineTunedModel), Path(checkpoint), "configs/sft_topics.yaml")[0]


def gpt_of(model: LanguageModel, checkpoint: str) -> GPT:
    """Return the network of a model of ours, fine-tuned or not.

    Args:
        model: The model.
        checkpoint: Where it is from, for the error.

    Raises:
        MisconfigurationException: If it is another library's.
    """
    net = model.base.net if isinstance(model, FineTunedModel) else model.net
    if not isinstance(net, GPT):
        raise MisconfigurationException(
            f"{checkpoint} has a {type(net).__name__}, but RewardModel gives a new output layer to a GPT of ours; train one with"
            " `python -m recipes fit --config configs/gpt_stdlib.yaml`."
        )
    return net
