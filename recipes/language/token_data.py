"""What the data modules of text share: a row of tokens for each split, and the windows that are cut from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

Split = Literal["train", "val", "test"]
Tokens: TypeAlias = NDArray[Any]


class Windows(Dataset[Tensor]):
    """The windows of ``context + 1`` tokens that start where asked.

    Args:
        tokens: All tokens, of an unsigned integer type.
        context: Tokens that predict.
    """

    def __init__(self, tokens: Tokens, context: int) -> None:
        self.tokens, self.context = tokens, context

    def __len__(self) -> int:
        return len(self.tokens) - self.context

    @override
    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.tokens[index : index + self.context + 1].astype(np.int64))


class RandomStarts(Sampler[int]):
    """So many random numbers below a bound, drawn anew each epoch and all at once, so that nothing that training draws changes them.

    Args:
        bound: The bound.
        count: How many.
    """

    def __init__(self, bound: int, count: int) -> None:
        self.bound, self.count = bound, count

    def __len__(self) -> int:
        return self.count

    @override
    def __iter__(self) -> Iterator[int]:
        yield from torch.randint(self.bound, (self.count,)).tolist()


class TokenData(pl.LightningDataModule):
    """Base of the data modules of text; a subclass says in `read` what the tokens of each split are, and in `decode` what they mean.

    Training windows start anywhere, at random; validation and test take the same windows each time, spread evenly over their text.

    Args:
        context: Tokens that a window predicts from.
        batch_size: Windows a training step.
        eval_batch_size: Windows a batch in validation and test.
        epoch_windows: Windows an epoch.
        eval_windows: Windows in validation and in test, at the most: the others of a longer text are left out.
    """

    gives: ClassVar[str] = "text"
    vocab_size: int

    def __init__(
        self, context: int = 128, batch_size: int = 16, eval_batch_size: int = 64, epoch_windows: int = 1600, eval_windows: int = 512
    ) -> None:
        super().__init__()
        self.context, self.batch_size, self.eval_batch_size = context, batch_size, eval_batch_size
        self.epoch_windows, self.eval_windows = epoch_windows, eval_windows
        if min(context, batch_size, eval_batch_size, epoch_windows, eval_windows) < 1:
            raise MisconfigurationException("context, batch sizes, epoch_windows and eval_windows must be at least 1.")
        self._tokens: Mapping[Split, Tokens] = {}

    def read(self) -> Mapping[Split, Tokens]:
        """Return the tokens of each split."""
        raise NotImplementedError

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that some tokens are.

        Args:
            tokens: The tokens.
        """
        raise NotImplementedError

    @override
    def setup(self, stage: str) -> None:
        """Read the tokens."""
        if self._tokens:
            return
        found = self.read()
        for split, tokens in found.items():
            if len(tokens) <= self.context:
                raise MisconfigurationException(
                    f"The {split} text has {len(tokens)} tokens, but a window takes {self.context + 1}; give more text, or a smaller "
                    "--data.context and --model.context."
                )
        self._tokens = found

    def tokens(self, split: Split) -> Tokens:
        """Return the tokens of a split, after `setup`.

        Args:
            split: Which.
        """
        return self._tokens[split]

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return batches of random windows."""
        windows = Windows(self._tokens["train"], self.context)
        return DataLoader(windows, batch_size=self.batch_size, sampler=RandomStarts(len(windows), self.epoch_windows))

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return the windows of the validation text in order."""
        return self._in_order("val")

    @override
    def test_dataloader(self) -> DataLoader[Tensor]:
        """Return the windows of the test text in order."""
        return self._in_order("test")

    @override
    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Return the windows of the test text in order."""
        return self._in_order("test")

    def _in_order(self, split: Split) -> DataLoader[Tensor]:
        windows = Windows(self._tokens[split], self.context)
        return DataLoader(windows, batch_size=self.eval_batch_size, sampler=self.spread(len(windows)))

    def spread(self, starts: int) -> list[int]:
        """Return where the windows of a split start that are measured: spread evenly, so that none overlaps with another.

        Args:
            starts: Where windows may start.
        """
        count = min(self.eval_windows, -(-starts // self.context))
        return [number * starts // count for number in range(count)]
