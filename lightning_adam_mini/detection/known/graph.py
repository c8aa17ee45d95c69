"""torch-geometric's convolutions."""

from lightning_adam_mini.detection.registry import KnownModule

_CONV = "torch_geometric.nn.conv"

MODULES = (KnownModule((f"{_CONV}.gat_conv.GATConv",), {"lin": "gnn_weight=v:{heads}x{out_channels}"}),)
