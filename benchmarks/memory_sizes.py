"""Sizes of memory, as people write them."""

from __future__ import annotations

import argparse
import re

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def memory_sizes(text: str) -> dict[str, int]:
    """Return the bytes of each size in a comma-separated list.

    Args:
        text: The list.

    Example:
        >>> memory_sizes("500MB,8GB,1GiB")
        {'500MB': 500000000, '8GB': 8000000000, '1GiB': 1073741824}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B", part.strip().upper())
        if match is None or not float(match[1]):
            raise argparse.ArgumentTypeError(f"{part!r} is no size of memory such as 8GB, 500MB or 16GiB")
        sizes[part.strip()] = int(float(match[1]) * UNITS[match[2] or ""])
    return sizes
