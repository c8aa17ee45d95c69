"""Models of the libraries, against line orders that were written down from their forward code, and against what moves when they run."""

import copy

import pytest
import torch
from torch import nn

from lightning_adam_mini.detection import Architecture, Role, inspect_model
from lightning_adam_mini.lines import parse_lines


def lines_of(model, suffix):
    return {p.lines for p in inspect_model(model).parameters if p.name.endswith(suffix)}


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


class TestTimm:
    timm = pytest.importorskip("timm")

    def test_resnet18(self):
        report = inspect_model(on_meta(self.timm.create_model, "resnet18"))
        assert report.architecture is Architecture.CNN
        assert report.by_name["conv1.weight"].role is Role.FIRST_CONV
        assert report.by_name["fc.weight"].role is Role.CLASSIFIER
        assert {p.role for p in report.parameters} == {Role.FIRST_CONV, Role.CONV, Role.NORM, Role.BIAS, Role.CLASSIFIER}
        assert not report.guesses

    def test_vit(self):
        report = inspect_model(on_meta(self.timm.create_model, "vit_tiny_patch16_224"))
        assert report.architecture is Architecture.TRANSFORMER
        roles = {name: report.by_name[name].role for name in ("patch_embed.proj.weight", "pos_embed", "cls_token", "head.weight")}
        assert list(roles.values()) == [Role.PATCH_EMBEDDING, Role.POSITION_EMBEDDING, Role.SPECIAL_TOKEN, Role.CLASSIFIER]
        block = {name: report.by_name[f"blocks.3.{name}"].role for name in ("attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")}
        assert list(block.values()) == [Role.ATTN_OUT, Role.MLP_UP, Role.MLP_DOWN]
        assert report.by_name["blocks.3.attn.qkv.bias"].lines == "q:3x64|k:3x64|v:3x64"

    def test_vit_heads_are_the_rows_that_move_their_attention_map(self):
        from timm.layers.attention import Attention

        attention = (
            Attention(24, num_heads=3, fused_attn=False) if "fused_attn" in Attention.__init__.__code__.co_varnames else Attention(24, 3)
        )
        attention.fused_attn = False
        x, seen = torch.randn(1, 5, 24), []
        attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
        attention(x)
        lines = parse_lines(inspect_model(attention).by_name["qkv.weight"].lines).expand()
        for row, (role, head) in enumerate(lines):
            weight = attention.qkv.weight.data
            kept = weight[row].clone()
            weight[row] += 1
            attention(x)
            weight[row] = kept
            moved = [h for h in range(3) if not torch.equal(seen[0][0, h], seen[-1][0, h])]
            assert moved == ([head] if role in "qk" else [])

    @pytest.mark.parametrize(
        ("name", "suffix", "expected"),
        [
            ("maxvit_tiny_tf_224", "stages.0.blocks.0.attn_block.attn.qkv.weight", "q:2x32|k:2x32|v:2x32"),  # head_first=False
            ("maxxvit_rmlp_nano_rw_256", "stages.0.blocks.0.attn_block.attn.qkv.weight", "2*(q:1x32|k:1x32|v:1x32)"),  # True
            ("mobilenetv4_hybrid_medium", "attn.key.proj.weight", "k:1x64"),  # one key for all heads
            ("mobilevitv2_050", "stages.2.1.transformer.0.attn.qkv_proj.weight", "q:1x1|k:1x64|v:1x64"),
            ("efficientformer_l1", "attn.qkv.weight", "8*(q:1x32|k:1x32|v:1x128)"),
        ],
    )
    def test_line_orders(self, name, suffix, expected):
        found = lines_of(on_meta(self.timm.create_model, name), suffix) or lines_of(on_meta(self.timm.create_model, name), "qkv.weight")
        assert expected in found


class TestTransformers:
    transformers = pytest.importorskip("transformers")

    def build(self, cls, config, **options):
        config = getattr(self.transformers, config)(**options)
        return on_meta(getattr(self.transformers, cls)._from_config, config)

    def test_llama_with_grouped_queries(self):
        model = self.build(
            "LlamaForCausalLM", "LlamaConfig", num_hidden_layers=1, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096
        )
        report = inspect_model(model).by_name
        assert report["model.layers.0.self_attn.q_proj.weight"].lines == "q:32x128"
        assert report["model.layers.0.self_attn.k_proj.weight"].lines == "k:8x128"
        roles = [report[f"model.layers.0.mlp.{name}_proj.weight"].role for name in ("gate", "up", "down")]
        assert roles == [Role.MLP_GATE, Role.MLP_UP, Role.MLP_DOWN]
        assert report["model.embed_tokens.weight"].role is Role.TOKEN_EMBEDDING
        assert report["lm_head.weight"].role is Role.LM_HEAD

    def test_seven_billion_parameters_on_meta(self):
        report = inspect_model(self.build("LlamaForCausalLM", "LlamaConfig"))
        assert sum(torch.Size(p.shape).numel() for p in report.parameters) > 6.5e9

    def test_gpt2s_lines_are_columns_which_move_the_maps_of_their_head(self):
        config = self.transformers.GPT2Config(n_layer=1, n_embd=24, n_head=3, vocab_size=11, n_positions=8, attn_implementation="eager")
        model = self.transformers.GPT2LMHeadModel(config).eval()
        p = inspect_model(model).by_name["transformer.h.0.attn.c_attn.weight"]
        assert (p.axis, p.lines) == (1, "q:3x8|k:3x8|v:3x8")
        tokens = torch.arange(6)[None]
        before = model(tokens, output_attentions=True).attentions[0][0]
        for column, (role, head) in list(enumerate(parse_lines(p.lines).expand()))[::5]:
            changed = copy.deepcopy(model)
            changed.transformer.h[0].attn.c_attn.weight.data[:, column] += torch.randn(24)
            after = changed(tokens, output_attentions=True).attentions[0][0]
            moved = [h for h in range(3) if not torch.allclose(before[h], after[h], atol=1e-7)]
            assert moved == ([head] if role in "qk" else [])

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"new_decoder_architecture": True, "num_kv_heads": 2}, "2*(q:4x8|k:1x8|v:1x8)"),
            ({"new_decoder_architecture": False, "multi_query": True}, "q:8x8|k:1x8|v:1x8"),
            ({"new_decoder_architecture": False, "multi_query": False}, "8*(q:1x8|k:1x8|v:1x8)"),
        ],
    )
    def test_falcons_three_layouts(self, options, expected):
        model = self.build(
            "FalconModel", "FalconConfig", hidden_size=64, num_attention_heads=8, num_hidden_layers=1, vocab_size=16, **options
        )
        assert lines_of(model, "query_key_value.weight") == {expected}

    def test_latent_attention(self):
        sizes = {"q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
        model = self.build(
            "DeepseekV3Model", "DeepseekV3Config", hidden_size=32, num_attention_heads=4, num_hidden_layers=1, vocab_size=16, **sizes
        )
        assert lines_of(model, "q_b_proj.weight") == {"q:4x12"}
        assert lines_of(model, "kv_a_proj_with_mqa.weight") == {"n:16|k:1x4"}
        assert lines_of(model, "kv_b_proj.weight") == {"4*(k:1x8|v:1x6)"}

    def test_outputs_of_experts_are_found_by_shape(self):
        options = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_local_experts": 4, "num_attention_heads": 4}
        mixtral = inspect_model(self.build("MixtralModel", "MixtralConfig", num_key_value_heads=2, vocab_size=16, **options))
        gpt_oss = inspect_model(self.build("GptOssModel", "GptOssConfig", num_key_value_heads=2, head_dim=8, vocab_size=16, **options))
        for report, axis in ((mixtral, 1), (gpt_oss, 2)):
            (up,) = [p for p in report.parameters if p.name.endswith("experts.gate_up_proj")]
            (down,) = [p for p in report.parameters if p.name.endswith("experts.down_proj")]
            assert (up.role, up.axis, up.shape[axis]) == (Role.MLP_GATE_UP, axis, 96)
            assert (down.role, down.axis, down.shape[axis]) == (Role.MLP_DOWN, axis, 32)

    def test_bert_keeps_its_output_projection_beside_attention(self):
        model = self.build("BertForMaskedLM", "BertConfig", num_hidden_layers=1)
        report = inspect_model(model).by_name
        assert report["bert.encoder.layer.0.attention.output.dense.weight"].role is Role.ATTN_OUT
        assert report["bert.encoder.layer.0.intermediate.dense.weight"].role is Role.MLP_UP
        assert report["bert.encoder.layer.0.output.dense.weight"].role is Role.MLP_DOWN
        assert report["bert.embeddings.position_embeddings.weight"].role is Role.POSITION_EMBEDDING
        assert "cls.predictions.decoder.weight" in report["bert.embeddings.word_embeddings.weight"].aliases


def test_diffusers_unet():
    diffusers = pytest.importorskip("diffusers")
    model = on_meta(
        diffusers.UNet2DModel,
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
    )
    report = inspect_model(model)
    assert report.architecture is Architecture.DIFFUSION_UNET
    assert report.by_name["conv_in.weight"].role is Role.FIRST_CONV
    assert report.by_name["time_embedding.linear_1.weight"].role is Role.TIME_EMBEDDING
    assert report.by_name["mid_block.attentions.0.to_q.weight"].lines == "q:4x16"
    assert report.by_name["mid_block.attentions.0.to_out.0.weight"].role is Role.ATTN_OUT


def test_torch_geometric():
    g = pytest.importorskip("torch_geometric.nn")
    gcn = inspect_model(g.GCN(16, 32, 2, 7))
    assert gcn.architecture is Architecture.GNN
    assert gcn.by_name["convs.0.lin.weight"].role is Role.GRAPH_CONV
    gat = inspect_model(g.GAT(16, 32, 2, 7, heads=4)).by_name["convs.0.lin.weight"]
    assert (gat.role, gat.lines) == (Role.GRAPH_CONV, "v:4x8")
    # A graph network with attention in it stays one.
    gps = g.GPSConv(32, g.GINConv(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))), heads=4)
    report = inspect_model(gps)
    assert report.architecture is Architecture.GNN
    assert report.by_name["attn.in_proj_weight"].lines == "q:4x8|k:4x8|v:4x8"


def test_low_rank_adapters_follow_the_layer_they_adapt():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), peft.LoraConfig(r=3, target_modules=["q_proj"]))
    report = inspect_model(model)
    (a,) = [p for p in report.parameters if p.role is Role.LORA_A]
    (b,) = [p for p in report.parameters if p.role is Role.LORA_B]
    assert (a.shape, b.shape, b.lines) == ((3, 32), (32, 3), "q:4x8")
    (base,) = [p for p in report.parameters if p.name.endswith("q_proj.base_layer.weight")]
    assert (base.role, base.lines, base.trainable) == (Role.QUERY, "q:4x8", False)


def test_names_are_relative_to_the_lightning_module():
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.TransformerEncoderLayer(16, 2, 32)

    assert inspect_model(Module()).by_name["model.self_attn.in_proj_weight"].lines == "q:2x8|k:2x8|v:2x8"
