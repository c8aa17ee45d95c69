"""A data module whose only batch is its whole graph, unless it is told to train on samples of neighbours."""

from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from typing_extensions import override


class FullBatchData(pl.LightningDataModule):
    """Base of the graphs' data modules: subclasses return their graph from `read`.

    Args:
        sample_neighbours: Where given, a training step sees ``batch_size`` training nodes and so many random neighbours of each, layer by
            layer, instead of the whole graph (needs pyg-lib); validation and test see the whole graph.
        batch_size: Training nodes a step; of no effect on the whole graph.
    """

    gives: ClassVar[str] = "a graph"

    def __init__(self, sample_neighbours: list[int] | None = None, batch_size: int = 1024) -> None:
        super().__init__()
        self.sample_neighbours = sample_neighbours
        self.batch_size = batch_size
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
        if self.sample_neighbours is not None:
            require_sampler()
        graph = self.read()
        missing = [name for name in ("train_mask", "val_mask", "test_mask") if getattr(graph, name, None) is None]
        if missing:
            raise MisconfigurationException(
                f"The graph has no {', '.join(missing)}, so it is not known which nodes train; give each node's split as a mask."
            )
        self._graph = graph

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the graph, or samples of it."""
        if self.sample_neighbours is None:
            return self.val_dataloader()
        from torch_geometric.loader import NeighborLoader

        graph = self._graph.clone()
        graph.x = graph.x.to_dense()  # of which rows can be taken
        return NeighborLoader(graph, self.sample_neighbours, graph.train_mask, batch_size=self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        """Return the graph."""
        return DataLoader([self._graph], batch_size=None)  # pyright: ignore[reportArgumentType]

    test_dataloader = predict_dataloader = val_dataloader


def require_sampler() -> None:
    """Refuse to sample neighbours where nothing that torch-geometric samples with is installed."""
    from torch_geometric import typing

    if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
        raise MisconfigurationException(
            "--data.sample_neighbours needs pyg-lib, which is not installed. Install it as https://github.com/pyg-team/pyg-lib says for "
            "your version of torch, or leave the argument out to train on the whole graph."
        )
