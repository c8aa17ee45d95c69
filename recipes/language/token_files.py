"""Files of tokens, as nanoGPT writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from recipes.language.token_data import Split, TokenData, Tokens
from recipes.language.tokenizer import PairTokenizer


class TokenFiles(TokenData):
    """``train.bin`` and ``val.bin``, as nanoGPT's ``data/*/prepare.py`` writes them; they are mapped into memory, not read.

    Where there is no ``test.bin``, the test set is the validation set.

    Args:
        root: Folder that holds them.
        vocab_size: Number of tokens; 50,257 for GPT-2's.
        dtype: Type of a token in the files.
        tokenizer: A JSON file of Hugging Face's tokenizers that turns tokens into text, for samples; without it a sample is numbers.
        windows: Arguments of `TokenData`: context, batch_size, eval_batch_size, epoch_windows, eval_windows.
    """

    def __init__(
        self,
        root: str = "data/openwebtext",
        vocab_size: int = 50257,
        dtype: Literal["uint16", "uint32"] = "uint16",
        tokenizer: str | None = None,
        **windows: Any,
    ) -> None:
        super().__init__(**windows)
        self.root, self.vocab_size, self.dtype = Path(root), vocab_size, np.dtype(dtype)
        self._tokenizer = None if tokenizer is None else PairTokenizer(Path(tokenizer))

    @override
    def read(self) -> dict[Split, Tokens]:
        """Map the files into memory."""
        test = "test" if (self.root / "test.bin").is_file() else "val"
        return {"train": self._map("train"), "val": self._map("val"), "test": self._map(test)}

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that some tokens are, or their numbers.

        Args:
            tokens: The tokens.
        """
        return " ".join(map(str, tokens)) if self._tokenizer is None else self._tokenizer.decode(tokens)

    def _map(self, name: str) -> Tokens:
        file = self.root / f"{name}.bin"
        if not file.is_file() or not file.stat().st_size:
            raise MisconfigurationException(
                f"No tokens found: looked for {file}. Write it with nanoGPT's data/openwebtext/prepare.py, or point --data.root to a "
                "folder that holds train.bin and val.bin."
            )
        return np.memmap(file, dtype=self.dtype, mode="r")
