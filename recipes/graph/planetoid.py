"""The citation graphs Cora, CiteSeer and PubMed, as torch-geometric reads them."""

from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from recipes.graph.full_batch import FullBatchData


class PlanetoidData(FullBatchData):
    """Cora, CiteSeer or PubMed with the usual split: 20 training nodes a class, 500 validation and 1000 test nodes.

    Args:
        root: Folder that holds ``<name>/raw/ind.<name>.*``; torch-geometric writes ``<name>/processed`` beside it.
        name: Which of the three.
        download: Whether to download what is not there.
        normalize: Whether to scale the features of each node to sum one.
        sample_neighbours: Where given, how many random neighbours a layer sees of each node, in training (needs pyg-lib); else all.
        batch_size: Training nodes a step, where neighbours are sampled.
    """

    def __init__(
        self,
        root: str = "data/planetoid",
        name: Literal["Cora", "CiteSeer", "PubMed"] = "Cora",
        download: bool = False,
        normalize: bool = True,
        sample_neighbours: list[int] | None = None,
        batch_size: int = 1024,
    ) -> None:
        super().__init__(sample_neighbours, batch_size)
        self.root = Path(root)
        self.graph_name = name
        self.download = download
        self.normalize = normalize

    @override
    def read(self) -> Any:
        """Return the graph."""
        from torch_geometric.datasets import Planetoid
        from torch_geometric.transforms import NormalizeFeatures

        folder = self.root / self.graph_name / "raw"
        endings = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
        missing = [file for ending in endings if not (folder / (file := f"ind.{self.graph_name.lower()}.{ending}")).is_file()]
        if missing and not self.download:
            raise MisconfigurationException(
                f"No complete {self.graph_name} found: looked in the folder {folder} for {', '.join(missing)}. "
                "Set --data.download true to download it, or point --data.root to the folder that holds it."
            )
        graph: Any = Planetoid(str(self.root), self.graph_name, transform=NormalizeFeatures() if self.normalize else None)[0]
        graph.x = graph.x.to_sparse_coo().coalesce()  # one word in a hundred is there: dense, their dropout takes most of a step
        return graph
