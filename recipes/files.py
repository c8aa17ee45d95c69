"""Files that are there in full or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their final name and rename them, so that a process killed meanwhile leaves the previous one as it was.

    Lightning writes to the system's temporary folder, from where a file is copied, not renamed, if that is on another disk.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if "://" in str(path):  # an object store, whose files appear whole anyway
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        unfinished = Path(f"{path}.part")  # one name, so that what a killed process left is overwritten
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, unfinished)
        unfinished.replace(path)


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
