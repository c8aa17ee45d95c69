"""Node classification with GCN and GAT, on a graph of handwritten digits, citation graphs and ogbn-arxiv."""

from recipes.graph.digits_knn import DigitsGraphData as DigitsGraphData
from recipes.graph.model import NodeClassifier as NodeClassifier
from recipes.graph.ogbn_arxiv import ArxivData as ArxivData
from recipes.graph.planetoid import PlanetoidData as PlanetoidData
