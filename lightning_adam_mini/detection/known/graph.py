"""torch-geometric's convolutions."""

from lightning_adam_mini.detection.registry import KnownModule

_CONV = "torch_geometric.nn.conv"

MODULES = (
    KnownModule(
        (f"{_CONV}.gat_conv.GATConv",),
        dict.fromkeys(("lin", "lin_src", "lin_dst"), "gnn_weight=v:{heads}x{out_channels}"),
    ),
    KnownModule(
        (f"{_CONV}.gatv2_conv.GATv2Conv",),
        dict.fromkeys(("lin_l", "lin_r"), "gnn_weight=v:{heads}x{out_channels}"),
    ),
    KnownModule(
        (f"{_CONV}.transformer_conv.TransformerConv",),
        {
            "lin_query": "q:{heads}x{out_channels}",
            "lin_key": "k:{heads}x{out_channels}",
            "lin_value": "v:{heads}x{out_channels}",
            "lin_skip": "gnn_weight",
            "lin_edge": "gnn_weight",
            "lin_beta": "gnn_weight",
        },
    ),
    # It has the names, but gates its messages without a softmax over heads.
    KnownModule(
        (f"{_CONV}.res_gated_graph_conv.ResGatedGraphConv",),
        dict.fromkeys(("lin_key", "lin_query", "lin_value", "lin_skip"), "gnn_weight"),
    ),
    KnownModule((f"{_CONV}.han_conv.HANConv",), {"k_lin": "gnn_weight", "proj.*": "gnn_weight"}),
    KnownModule(
        (f"{_CONV}.hgt_conv.HGTConv",),
        {"kqv_lin.lins.*": "k:{heads}x{D}|q:{heads}x{D}|v:{heads}x{D}", "out_lin.lins.*": "attn_out"},
    ),
)
