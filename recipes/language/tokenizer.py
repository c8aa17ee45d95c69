"""From text to tokens and back: bytes, or byte pairs (BPE) by Hugging Face's tokenizers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from recipes.files import write_atomically
from recipes.language.token_data import Tokens

END = "<|endoftext|>"  # what stands between two documents


class Tokenizer(Protocol):
    """What turns documents into tokens, with token 0 after each."""

    vocab_size: int

    def encode(self, documents: Iterable[str]) -> Tokens:
        """Return the tokens of some documents, one after the other."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that some tokens are."""
        ...


class ByteTokenizer(Tokenizer):
    r"""A token a byte of UTF-8; byte 0, which text has none of, ends a document.

    Example:
        >>> tokens = ByteTokenizer().encode(["ab", "\u00e4"])
        >>> tokens.tolist(), ByteTokenizer().decode(tokens[:3])
        ([97, 98, 0, 195, 164, 0], 'ab\n')
    """

    vocab_size = 256

    @override
    def encode(self, documents: Iterable[str]) -> Tokens:
        """Return the tokens of some documents, one after the other."""
        return np.frombuffer(b"".join(document.encode() + b"\0" for document in documents), dtype=np.uint8)

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that some tokens are; the end of a document is a new line."""
        return bytes(tokens).decode(errors="replace").replace("\0", "\n")


class PairTokenizer(Tokenizer):
    """Byte pairs, from a file of Hugging Face's tokenizers.

    Args:
        file: The JSON file.
    """

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer as Pairs

        try:
            self.pairs = Pairs.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise MisconfigurationException(
                f"{file} cannot be read as a tokenizer, because {error}; remove it to train one anew."
            ) from error
        end = self.pairs.token_to_id(END)
        if end is None:
            raise MisconfigurationException(f"{file} has no token {END!r}, which ends a document; remove it to train one anew.")
        self.end = end
        self.vocab_size = self.pairs.get_vocab_size()

    @override
    def encode(self, documents: Iterable[str]) -> Tokens:
        """Return the tokens of some documents, one after the other."""
        encoded = self.pairs.encode_batch(list(documents), add_special_tokens=False)
        tokens = [token for document in encoded for token in (*document.ids, self.end)]
        return np.array(tokens, dtype=np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text that some tokens are."""
        return self.pairs.decode(list(tokens), skip_special_tokens=True)


def train_pairs(documents: Iterable[str], vocab_size: int, file: Path) -> None:
    """Train byte pairs as GPT-2's are, and write them.

    Args:
        documents: The training text.
        vocab_size: Number of tokens: 256 bytes, the end of a document, and the most frequent pairs.
        file: The JSON file to write.
    """
    from tokenizers import Tokenizer as Pairs
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    pairs = Pairs(BPE())
    pairs.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    pairs.decoder = Decoder()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=ByteLevel.alphabet(), show_progress=False)  # pyright: ignore[reportCallIssue]
    pairs.train_from_iterator(documents, trainer)
    write_atomically(file, pairs.to_str())
