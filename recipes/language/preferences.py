"""Pairs of texts of which the first is preferred: real text, and the same with its end spoilt."""

from typing import ClassVar, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from recipes.language.text import PythonText
from recipes.language.token_data import RandomStarts, Split, Tokens, Windows


class Pair(NamedTuple):
    """A prompt with two answers, of shape (prompt + answer,) each, or a batch of them.

    Attributes:
        chosen: With the one that is preferred.
        rejected: With the other.
    """

    chosen: Tensor
    rejected: Tensor


class Pairs(Dataset[Pair]):
    """A window of text, and the same with its last tokens spoilt in one of three ways, which follow from the window's number.

    A share of the tokens are others; or a few of them repeat; or what follows is from elsewhere. So a reward model learns to tell spelling
    mistakes, loops and what has nothing to do with the prompt. Nobody was asked: the preference is for real text.

    Args:
        tokens: All tokens, of an unsigned integer type.
        prompt: Tokens that stay.
        answer: Tokens that are spoilt.
    """

    def __init__(self, tokens: Tokens, prompt: int, answer: int) -> None:
        self.windows = Windows(tokens, prompt + answer - 1)
        self.answer = answer

    def __len__(self) -> int:
        return len(self.windows)

    @override
    def __getitem__(self, index: int) -> Pair:
        chosen = self.windows[index]
        generator = torch.Generator().manual_seed(index)

        def draw(bound: int) -> int:
            return int(torch.randint(bound, (), generator=generator))

        answer = chosen[-self.answer :]
        other = self.windows[draw(len(self.windows))][-self.answer :]
        way = draw(3)
        if way == 0:
            share = 0.1 + 0.4 * torch.rand((), generator=generator)
            answer = torch.where(torch.rand(self.answer, generator=generator) < share, other, answer)
        elif way == 1:
            period = 1 + draw(max(1, self.answer // 4))
            answer = answer[:period].repeat(-(-self.answer // period))[: self.answer]
        else:
            answer = other
        return Pair(chosen, torch.cat([chosen[: -self.answer], answer]))


class PreferredText(PythonText):
    """Pairs of real and of spoilt text, of what comes with every Python.

    Args:
        prompt: Tokens that both texts of a pair begin with.
        answer: Tokens after it, of which one text has real and the other spoilt ones.
        part: As in `PythonText`: ``topics`` (English) or ``source`` (Python).
        batch_size: Pairs a training step.
        eval_batch_size: Pairs a batch in validation and test.
        epoch_windows: Pairs an epoch.
        eval_windows: Pairs in validation and in test, at the most.
    """

    gives: ClassVar[str] = "pairs of texts"

    def __init__(
        self,
        prompt: int = 32,
        answer: int = 32,
        part: Literal["source", "topics"] = "topics",
        batch_size: int = 16,
        eval_batch_size: int = 64,
        epoch_windows: int = 1600,
        eval_windows: int = 512,
    ) -> None:
        if min(prompt, answer) < 1:
            raise MisconfigurationException(f"A pair needs a prompt and an answer of a token at least, not {prompt} and {answer}.")
        super().__init__(
            part=part,
            context=prompt + answer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            epoch_windows=epoch_windows,
            eval_windows=eval_windows,
        )
        self.prompt, self.answer = prompt, answer

    @override
    def train_dataloader(self) -> DataLoader[Pair]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return batches of random pairs."""
        pairs = Pairs(self.tokens("train"), self.prompt, self.answer)
        return DataLoader(pairs, batch_size=self.batch_size, sampler=RandomStarts(len(pairs), self.epoch_windows))

    @override
    def _in_order(self, split: Split) -> DataLoader[Pair]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pairs = Pairs(self.tokens(split), self.prompt, self.answer)
        return DataLoader(pairs, batch_size=self.eval_batch_size, sampler=self.spread(len(pairs)))
