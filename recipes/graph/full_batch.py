"""A data module whose only batch is its whole graph."""

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from typing_extensions import override


class FullBatchData(pl.LightningDataModule):
    """Base of the graphs' data modules: subclasses return their graph from `read`."""

    def __init__(self) -> None:
        super().__init__()
        self._graph: Any = None

    def read(self) -> Any:
        """Return the graph, a torch-geometric `Data` with ``train_mask``, ``val_mask`` and ``test_mask``."""
        raise NotImplementedError

    @property
    def in_channels(self) -> int:
        """Features of a node."""
        return self._graph.num_features

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self._graph.y.max()) + 1

    @override
    def setup(self, stage: str) -> None:
        """Read the graph."""
        if self._graph is not None:
            return
        graph = self.read()
        missing = [name for name in ("train_mask", "val_mask", "test_mask") if getattr(graph, name, None) is None]
        if missing:
            raise MisconfigurationException(
                f"The graph has no {', '.join(missing)}, so it is not known which nodes train; give each node's split as a mask."
            )
        self._graph = graph

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the graph."""
        return DataLoader([self._graph], batch_size=None)  # pyright: ignore[reportArgumentType]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
