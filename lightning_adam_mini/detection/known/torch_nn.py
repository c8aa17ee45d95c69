"""torch.nn's own modules."""

from lightning_adam_mini.detection.registry import STACKED, KnownModule

_LSTM = "input:{hidden_size}|forget:{hidden_size}|cell:{hidden_size}|output:{hidden_size}"
_GRU = "reset:{hidden_size}|update:{hidden_size}|new:{hidden_size}"

MODULES = (
    KnownModule(
        ("torch.nn.modules.activation.MultiheadAttention",),
        {
            "in_proj_weight": STACKED,
            "in_proj_bias": STACKED,
            "q_proj_weight": "q:{H}x{D}",
            "k_proj_weight": "k:{H}x{D}",
            "v_proj_weight": "v:{H}x{D}",
            "out_proj": "attn_out",
            "bias_k": "special_token",
            "bias_v": "special_token",
        },
        {"H": "num_heads", "G": "num_heads"},
    ),
    KnownModule(
        ("torch.nn.modules.transformer.TransformerEncoderLayer", "torch.nn.modules.transformer.TransformerDecoderLayer"),
        {"linear1": "mlp_up", "linear2": "mlp_down"},
    ),
    KnownModule(
        ("torch.nn.modules.rnn.LSTM", "torch.nn.modules.rnn.LSTMCell"),
        {"weight_ih*": f"rnn_ih={_LSTM}", "weight_hh*": f"rnn_hh={_LSTM}", "bias_ih*": f"rnn_ih={_LSTM}", "bias_hh*": f"rnn_hh={_LSTM}"},
    ),
    KnownModule(
        ("torch.nn.modules.rnn.GRU", "torch.nn.modules.rnn.GRUCell"),
        {"weight_ih*": f"rnn_ih={_GRU}", "weight_hh*": f"rnn_hh={_GRU}", "bias_ih*": f"rnn_ih={_GRU}", "bias_hh*": f"rnn_hh={_GRU}"},
    ),
    KnownModule(("torch.nn.modules.rnn.RNN", "torch.nn.modules.rnn.RNNCell"), {"weight_ih*": "rnn_ih", "weight_hh*": "rnn_hh"}),
)
