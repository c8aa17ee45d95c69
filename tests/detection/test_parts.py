"""Models composed of several networks, each of which is partitioned as what it is, and single networks, which are not taken apart."""

import pytest
import torch
from torch import nn

from lightning_adam_mini import BlockLayout, inspect_model, partition_model
from lightning_adam_mini.detection import Architecture as A

WHOLE_2D, ROW = (0, 1), (1,)


class Holder(nn.Module):
    """A module with the given children, as a LightningModule would have them."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def encoder(layers=2):
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), layers, enable_nested_tensor=False)


def cnn(width=16):
    layers = [nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def parts(model):
    return {part.path: part.architecture for part in inspect_model(model).parts}


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


class TestComposed:
    def test_a_graph_encoder_before_a_transformer_in_a_lightning_module(self):
        g, lightning = pytest.importorskip("torch_geometric.nn"), pytest.importorskip("lightning")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.gnn_encoder = Holder(conv1=g.GCNConv(8, 16), conv2=g.GCNConv(16, 16))
                self.transformer = encoder(1)
                self.head = nn.Linear(16, 3)

        report = inspect_model(Module())
        assert report.architecture is A.GNN
        assert {p.path: p.architecture for p in report.parts} == {"gnn_encoder": A.GNN, "transformer": A.TRANSFORMER}
        layouts = partition_model(report, "adam_mini")
        layer = "transformer.layers.0"
        assert {name: (x.dims, x.axis, x.lines) for name, x in layouts.items() if "norm" not in name and "bias" not in name} == {
            "gnn_encoder.conv1.lin.weight": (WHOLE_2D, None, None),
            "gnn_encoder.conv2.lin.weight": (WHOLE_2D, None, None),
            f"{layer}.self_attn.in_proj_weight": (ROW, 0, "q:2x8|k:2x8|v:16x1"),
            f"{layer}.self_attn.out_proj.weight": (ROW, None, None),
            f"{layer}.linear1.weight": (ROW, None, None),
            f"{layer}.linear2.weight": (ROW, None, None),
            "head.weight": (WHOLE_2D, None, None),
        }
        # Of biases: one block per tensor in the graph network, each element in the transformer.
        assert layouts["gnn_encoder.conv1.bias"] == BlockLayout((16,), (0,))
        assert layouts[f"{layer}.linear1.bias"] == BlockLayout((32,))

    def test_graph_convolutions_as_children_beside_a_list_of_blocks(self):
        g = pytest.importorskip("torch_geometric.nn")
        blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32)])
        model = Holder(conv1=g.GATConv(8, 16), conv2=g.GCNConv(16, 16), blocks=blocks)
        assert parts(model) == {"conv1": A.GNN, "conv2": A.GNN, "blocks": A.TRANSFORMER}
        model = Holder(convs=nn.ModuleList([g.GCNConv(8, 16), g.GCNConv(16, 16)]), decoder=Holder(blocks=blocks))
        assert parts(model) == {"convs": A.GNN, "decoder": A.TRANSFORMER}

    def test_a_captioner_of_a_cnn_and_a_transformer(self):
        decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32), 1)
        model = Holder(backbone=cnn(), embedding=nn.Embedding(20, 16), decoder=decoder, lm_head=nn.Linear(16, 20))
        assert parts(model) == {"backbone": A.CNN, "decoder": A.TRANSFORMER}
        layouts = partition_model(model, "adam_mini")
        assert layouts["backbone.3.weight"] == BlockLayout((16, 16, 3, 3), (0, 1, 2, 3))
        assert layouts["backbone.3.bias"] == BlockLayout((16,), (0,))
        assert layouts["decoder.layers.0.multihead_attn.in_proj_weight"] == BlockLayout((48, 16), (1,), 0, "q:2x8|k:2x8|v:16x1")
        # A row a token, as in the model as a whole.
        assert layouts["embedding.weight"] == layouts["lm_head.weight"] == BlockLayout((20, 16), (1,))

    def test_the_two_networks_of_a_gan(self):
        deconvolutions = (nn.ConvTranspose2d(a, b, 4, 2) for a, b in ((8, 32), (32, 16), (16, 3)))
        generator = nn.Sequential(*deconvolutions)
        critic = Holder(patch=nn.Conv2d(3, 16, 4, 4), body=encoder(), score=nn.Linear(16, 1))
        model = Holder(nets=nn.ModuleDict({"generator": generator, "critic": critic}))
        assert parts(model) == {"nets.generator": A.CNN, "nets.critic": A.TRANSFORMER}
        layouts = partition_model(model, "adam_mini")
        assert layouts["nets.generator.1.weight"].num_blocks == 1
        assert layouts["nets.critic.body.layers.1.linear1.weight"].num_blocks == 32
        assert parts(Holder(generator=generator, discriminator=cnn())) == {}  # both are CNNs, and so is the whole

    def test_parts_of_parts(self):
        g = pytest.importorskip("torch_geometric.nn")
        graph = Holder(gnn=g.GCN(8, 16, 2), mixer=encoder(), project=nn.Linear(16, 16))
        model = nn.DataParallel(Holder(model=Holder(graph=graph, image=cnn())))
        found = {"model.graph": A.GNN, "model.graph.gnn": A.GNN, "model.graph.mixer": A.TRANSFORMER, "model.image": A.CNN}
        assert parts(model) == found
        report = inspect_model(model)
        inner = report.part_of(report.by_name["model.graph.mixer.layers.0.linear1.weight"])
        outer = report.part_of(report.by_name["model.graph.project.weight"])
        assert inner is not None
        assert outer is not None
        assert (inner.path, outer.path) == ("model.graph.mixer", "model.graph")

    def test_a_diffusion_unet_and_its_text_encoder(self):
        diffusers = pytest.importorskip("diffusers")
        unet = on_meta(
            diffusers.UNet2DConditionModel,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
        )
        assert parts(unet) == {}
        assert parts(Holder(unet=unet, text_encoder=encoder())) == {"unet": A.DIFFUSION_UNET, "text_encoder": A.TRANSFORMER}

    def test_an_override_makes_any_part_a_transformer(self):
        g = pytest.importorskip("torch_geometric.nn")
        model = Holder(gnn=g.GCN(8, 16, 2), transformer=encoder())
        layouts = partition_model(model, "adam_mini", overrides={"gnn.convs.1.lin.weight": {"role": "query", "lines": "q:4x4"}})
        assert layouts["gnn.convs.1.lin.weight"] == BlockLayout((16, 16), (1,), 0, "q:4x4")
        layouts = partition_model(model, "adam_mini", overrides={"gnn.convs.1.lin.weight": {"role": "mlp_up"}})
        assert layouts["gnn.convs.1.lin.weight"] == BlockLayout((16, 16), (1,))


class TestSingle:
    @pytest.mark.parametrize("name", ["coatnet_0_224", "levit_128s", "visformer_tiny", "vit_tiny_r_s16_p8_224", "maxvit_tiny_tf_224"])
    def test_hybrids_of_timm(self, name):
        assert parts(on_meta(pytest.importorskip("timm").create_model, name)) == {}

    def test_a_vision_transformer(self):
        assert parts(on_meta(pytest.importorskip("timm").create_model, "vit_tiny_patch16_224")) == {}

    def test_stages_of_convolutions_before_stages_of_attention(self):
        blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32)])
        assert parts(Holder(stem=cnn(), blocks=blocks, head=nn.Linear(16, 3))) == {}

    def test_graph_layers_with_attention_in_them(self):
        g = pytest.importorskip("torch_geometric.nn")
        gps = g.GPSConv(16, g.GCNConv(16, 16), heads=2)
        assert parts(gps) == parts(Holder(embed=nn.Linear(8, 16), convs=nn.ModuleList([gps]))) == {}
        layouts = partition_model(Holder(convs=nn.ModuleList([gps])), "adam_mini")
        assert layouts["convs.0.attn.in_proj_weight"].num_blocks == 1
        for model in (g.SGFormer(8, 16, 7), g.Polynormer(8, 16, 7), g.AttentiveFP(8, 16, 4, 4, 2, 2)):
            assert parts(model) == {}

    def test_a_decoder_with_its_ends_at_top_level(self):
        model = Holder(
            tokens=nn.Embedding(20, 16), positions=nn.Embedding(9, 16), body=encoder(), norm=nn.LayerNorm(16), head=nn.Linear(16, 20)
        )
        assert parts(model) == {}
        assert partition_model(model)["tokens.weight"] == BlockLayout((20, 16), (1,))

    def test_attention_of_an_autoencoder_and_a_sequence_model(self):
        sequence = Holder(encoder=nn.LSTM(16, 16), attention=nn.MultiheadAttention(16, 2), decoder=nn.LSTM(16, 16))
        assert parts(sequence) == {}
        diffusers = pytest.importorskip("diffusers")
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        assert parts(on_meta(diffusers.AutoencoderKL, block_out_channels=(32, 64), **blocks)) == {}

    def test_diffusion_transformers_with_refiners(self):
        diffusers = pytest.importorskip("diffusers")
        small = {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2, "attention_head_dim": 128}
        model = on_meta(diffusers.HunyuanVideoTransformer3DModel, **small)
        assert inspect_model(model).architecture is A.DIFFUSION_TRANSFORMER
        assert parts(model) == {}
