"""Files that are there in full or not at all."""

import os
from pathlib import Path


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file so that it is there in full or not at all, whenever the process is killed.

    Args:
        file: The file; its folder is made.
        content: What to write.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(file)
