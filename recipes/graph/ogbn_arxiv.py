"""ogbn-arxiv, read from the folder that the Open Graph Benchmark distributes, without its package."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from recipes.graph.full_batch import FullBatchData

SPLITS = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
RAW = ("edge", "node-feat", "node-label")


class ArxivData(FullBatchData):
    """ogbn-arxiv (169,343 papers, 40 subjects), split by year, with every citation made an edge both ways.

    Args:
        root: Folder that holds ``ogbn_arxiv``: http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip, unpacked and renamed to that.
        sample_neighbours: Where given, how many random neighbours a layer sees of each node, in training (needs pyg-lib); else all.
        batch_size: Training nodes a step, where neighbours are sampled.
    """

    def __init__(self, root: str = "data", sample_neighbours: list[int] | None = None, batch_size: int = 1024) -> None:
        super().__init__(sample_neighbours, batch_size)
        self.folder = Path(root) / "ogbn_arxiv"

    @override
    def read(self) -> Any:
        """Return the graph."""
        from torch_geometric.data import Data
        from torch_geometric.utils import to_undirected

        files = [self._raw(name) for name in RAW] + [self._split(name) for name in SPLITS]
        missing = [str(file.relative_to(self.folder)) for file in files if not file.is_file()]
        if missing:
            raise MisconfigurationException(
                f"No complete ogbn-arxiv found: looked in the folder {self.folder} for {', '.join(missing)}. Download "
                f"http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip, unpack it and call its folder {self.folder}, "
                "or point --data.root to the folder that holds ogbn_arxiv."
            )
        labels = table(self._raw("node-label"), np.int64).flatten()
        masks = {mask: torch.zeros(len(labels), dtype=torch.bool) for mask in SPLITS.values()}
        for name, mask in SPLITS.items():
            masks[mask][table(self._split(name), np.int64).flatten()] = True
        edges = table(self._raw("edge"), np.int64).t().contiguous()
        return Data(x=table(self._raw("node-feat"), np.float32), y=labels, edge_index=to_undirected(edges), **masks)

    def _raw(self, name: str) -> Path:
        return self.folder / "raw" / f"{name}.csv.gz"

    def _split(self, name: str) -> Path:
        return self.folder / "split" / "time" / f"{name}.csv.gz"


def table(file: Path, kind: type[np.generic]) -> Tensor:
    """Read a table of numbers from a gzipped CSV file without a header.

    Args:
        file: The file.
        kind: Type of its numbers.
    """
    return torch.as_tensor(np.loadtxt(file, delimiter=",", dtype=kind, ndmin=2))
