"""Real text: the Python standard library's source and its documentation, which come with Python, and folders of text files."""

import os
import sysconfig
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from recipes.language.token_data import Split, TokenData, Tokens
from recipes.language.tokenizer import ByteTokenizer, PairTokenizer, Tokenizer, train_pairs

HELD_OUT = 20  # of every so many documents, in order, one tests and one validates
OTHERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "_bundled"})


class TextData(TokenData):
    """Base of the data modules of documents, which a subclass lists in `documents`: of every 20, in order, one tests and one validates.

    Args:
        tokenizer: ``bytes``, or a JSON file of Hugging Face's tokenizers: byte pairs. If it is not there, it is trained on the training
            text and written.
        vocab_size: Number of tokens of a tokenizer that is to be trained; 256 for bytes.
        windows: Arguments of `TokenData`: context, batch_size, eval_batch_size, epoch_windows, eval_windows.
    """

    def __init__(self, tokenizer: str = "bytes", vocab_size: int = 256, **windows: Any) -> None:
        super().__init__(**windows)
        if tokenizer == "bytes" and vocab_size != 256:
            raise MisconfigurationException(
                f"Invalid vocab_size value: {vocab_size}, because there are 256 bytes; set --data.tokenizer to a file for byte pairs."
            )
        self.vocab_size = vocab_size
        self.tokenizer_file = None if tokenizer == "bytes" else Path(tokenizer)
        self._tokenizer: Tokenizer = ByteTokenizer()

    def documents(self) -> Sequence[str]:
        """Return all documents, always in the same order."""
        raise NotImplementedError

    @override
    def prepare_data(self) -> None:
        """Train the byte pairs, if they are wanted and not there."""
        if self.tokenizer_file is not None and not self.tokenizer_file.is_file():
            train_pairs(split_documents(self.documents())["train"], self.vocab_size, self.tokenizer_file)

    @override
    def read(self) -> dict[Split, Tokens]:
        """Return the tokens of each split."""
        if self.tokenizer_file is not None:
            self._tokenizer = PairTokenizer(self.tokenizer_file)
            self.vocab_size = self._tokenizer.vocab_size
        return {split: self._tokenizer.encode(documents) for split, documents in split_documents(self.documents()).items()}

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that some tokens are.

        Args:
            tokens: The tokens.
        """
        return self._tokenizer.decode(tokens)


def split_documents(documents: Sequence[str]) -> dict[Split, list[str]]:
    """Return the documents of each split.

    Args:
        documents: All of them.

    Raises:
        MisconfigurationException: If there is not one for each split.

    Example:
        >>> split_documents(["a", "b", "c", "d"])
        {'train': ['c', 'd'], 'val': ['b'], 'test': ['a']}
    """
    if len(documents) < 3:
        raise MisconfigurationException(
            f"There are {len(documents)} documents, but training, validation and test need one each; give more."
        )
    found: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    held_out: dict[int, Split] = {0: "test", 1: "val"}
    for number, document in enumerate(documents):
        found[held_out.get(number % HELD_OUT, "train")].append(document)
    return found


class PythonText(TextData):
    """Text that comes with every Python, so that nothing is downloaded; it differs a little from one version of Python to the next.

    Args:
        part: ``source``, the standard library's own modules without its tests (about 11 MB in 600 files), or ``topics``, those of
            ``help()``: English, from the language reference (about .7 MB in 80 documents).
        text: Arguments of `TextData` and `TokenData`: tokenizer, vocab_size, context, batch_size, ...
    """

    def __init__(self, part: Literal["source", "topics"] = "source", **text: Any) -> None:
        super().__init__(**text)
        self.part = part

    @override
    def documents(self) -> list[str]:
        """Return the modules in the order of their paths, or the topics in that of their names."""
        if self.part == "topics":
            topics: dict[str, str] = import_module("pydoc_data.topics").topics
            return [text for _, text in sorted(topics.items())]
        root = Path(sysconfig.get_path("stdlib"))
        files: list[Path] = []
        for folder, within, names in os.walk(root):
            within[:] = [name for name in within if name not in OTHERS]  # not even looked into: what is installed is far more
            files += [Path(folder, name) for name in names if name.endswith(".py")]
        return read_files(files)


class TextFolder(TextData):
    """All text files of a folder and of the folders within it, in the order of their paths.

    Args:
        root: The folder.
        pattern: Which files.
        text: Arguments of `TextData` and `TokenData`: tokenizer, vocab_size, context, batch_size, ...
    """

    def __init__(self, root: str = "data/text", pattern: str = "*.txt", **text: Any) -> None:
        super().__init__(**text)
        self.root, self.pattern = Path(root), pattern

    @override
    def documents(self) -> list[str]:
        """Return the files' texts in the order of their paths."""
        files = [file for file in self.root.rglob(self.pattern) if file.is_file()]
        if not files:
            raise MisconfigurationException(
                f"No text found: looked for {self.root}/**/{self.pattern}. Point --data.root to a folder of text files, "
                "and say by --data.pattern which they are."
            )
        return read_files(files)


def read_files(files: Iterable[Path]) -> list[str]:
    """Return the texts of some files in the order of their paths; bytes that are no UTF-8 become question marks.

    Args:
        files: The files.
    """
    return [file.read_text(encoding="utf-8", errors="replace") for file in sorted(files)]
