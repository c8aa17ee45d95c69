"""scikit-learn's handwritten digits as a graph: each image is joined to the images nearest to it."""

from typing import Any

import torch
from typing_extensions import override

from recipes.graph.full_batch import FullBatchData
from recipes.vision.splits import stratified_folds


class DigitsGraphData(FullBatchData):
    """A k-nearest-neighbour graph of scikit-learn's 1797 digits, of which few are labelled; nothing is downloaded.

    Of each class, in order, the first images train, the next 20 validate and the rest test. As usual for a graph, the features of all
    nodes are seen in training.

    Args:
        neighbours: Neighbours of each node; an edge goes both ways.
        labels_per_class: Training nodes of each class.
        sample_neighbours: Where given, how many random neighbours a layer sees of each node, in training (needs pyg-lib); else all.
        batch_size: Training nodes a step, where neighbours are sampled.
    """

    def __init__(
        self, neighbours: int = 8, labels_per_class: int = 5, sample_neighbours: list[int] | None = None, batch_size: int = 1024
    ) -> None:
        super().__init__(sample_neighbours, batch_size)
        self.neighbours = neighbours
        self.labels_per_class = labels_per_class

    @override
    def read(self) -> Any:
        """Return the graph."""
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph
        from torch_geometric.data import Data
        from torch_geometric.utils import to_undirected

        pixels, targets = load_digits(return_X_y=True)
        neighbours = kneighbors_graph(pixels, self.neighbours).tocoo()
        edges = torch.stack([torch.as_tensor(neighbours.row), torch.as_tensor(neighbours.col)]).long()
        labels = torch.as_tensor(targets, dtype=torch.int64)
        position = stratified_folds(labels, folds=len(labels))
        first = self.labels_per_class
        return Data(
            x=torch.as_tensor(pixels, dtype=torch.float32) / 16.0,
            y=labels,
            edge_index=to_undirected(edges),
            train_mask=position < first,
            val_mask=(position >= first) & (position < first + 20),
            test_mask=position >= first + 20,
        )
