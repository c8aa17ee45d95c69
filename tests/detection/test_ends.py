"""Embeddings and outputs: what no layer reads again, whatever it is called."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_adam_mini import AdamMini, inspect_model, partition_model
from lightning_adam_mini.detection import Role
from lightning_adam_mini.detection.evidence import Evidence, probe_attention


class TiedGPT(nn.Module):
    """One layer, a head tied to the tokens, and an MLP that is as wide as there are tokens."""

    def __init__(self, tied: bool):
        super().__init__()
        self.tokens, self.attn = nn.Embedding(64, 16), nn.MultiheadAttention(16, 2)
        self.up_proj, self.down_proj = nn.Linear(16, 64, bias=False), nn.Linear(64, 16)
        self.last = nn.Linear(16, 64, bias=False)
        if tied:
            self.last.weight = self.tokens.weight


def outputs(model: nn.Module) -> dict[str, Role]:
    return {p.name: p.role for p in inspect_model(model).parameters if p.role in (Role.LM_HEAD, Role.CLASSIFIER)}


def test_what_a_layer_reads_again_is_no_output():
    assert outputs(TiedGPT(tied=True)) == {}
    assert outputs(TiedGPT(tied=False)) == {"last.weight": Role.LM_HEAD}


def test_several_heads_are_several_outputs():
    hidden = lambda n: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, n))  # noqa: E731
    model = nn.ModuleDict({"body": nn.Linear(8, 32), "policy": hidden(4), "value": hidden(1)})
    assert set(outputs(model)) == {"policy.2.weight", "value.2.weight"}


def test_an_autoencoder_gives_what_it_reads():
    model = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 50))
    assert set(outputs(model)) == {"6.weight"}


def test_a_score_before_the_classifier_and_blocks_of_a_stack_are_no_outputs():
    model = nn.ModuleDict({"enter": nn.Linear(8, 32), "score": nn.Linear(32, 1), "on": nn.Linear(32, 32), "leave": nn.Linear(32, 5)})
    assert set(outputs(model)) == {"leave.weight"}
    assert outputs(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)) == {}
    assert outputs(nn.TransformerEncoderLayer(16, 2, 32)) == {}


def test_what_is_read_whole_or_by_half_is_no_output_for_its_name():
    chain = nn.ModuleDict({"body": nn.Linear(8, 32), "fc1": nn.Linear(32, 44), "fc2": nn.Linear(44, 3)})
    assert set(outputs(chain)) == {"fc2.weight"}
    gated = nn.ModuleDict({"fc": nn.Linear(8, 44), "on": nn.Linear(22, 22), "leave": nn.Linear(22, 3)})
    assert set(outputs(gated)) == {"leave.weight"}


def test_a_reward_beside_a_decoder_is_an_output_and_in_numbered_blocks_it_is_none():
    score = lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))  # noqa: E731
    model = nn.ModuleDict({"enter": nn.Linear(8, 32), "reward": score(), "picture": nn.Linear(32, 24), "up": nn.ConvTranspose2d(24, 3, 4)})
    assert set(outputs(model)) == {"reward.2.weight"}
    blocks = {f"block_{i}": nn.ModuleDict({"on": nn.Linear(32, 32), "score": score()}) for i in range(3)}
    assert set(outputs(nn.ModuleDict({"enter": nn.Linear(8, 32), **blocks, "leave": nn.Linear(32, 5)}))) == {"leave.weight"}


def test_a_convolution_of_embedded_tokens_is_not_the_first_of_a_picture():
    model = nn.ModuleDict({"tokens": nn.Embedding(50, 16), "one": nn.Conv1d(16, 24, 3), "two": nn.Conv1d(24, 24, 3)})
    assert {p.role for p in inspect_model(model).parameters if p.name.endswith("weight")} == {Role.TOKEN_EMBEDDING, Role.CONV}


@pytest.mark.parametrize("rank_first", [True, False])
def test_low_rank_updates_by_hand_are_told_by_their_shapes(rank_first: bool):
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(24, 40)
            self.down, self.up = (nn.Parameter(torch.zeros(*(size if rank_first else size[::-1]))) for size in ((3, 24), (40, 3)))

    report = inspect_model(nn.Sequential(Adapted(), nn.ReLU(), nn.Linear(40, 5))).by_name
    found = [(report[f"0.{name}"].role, report[f"0.{name}"].axis) for name in ("down", "up")]
    assert found == [(Role.LORA_A, int(not rank_first)), (Role.LORA_B, int(not rank_first))]


def test_a_smaller_table_beside_another_is_a_guess():
    model = nn.ModuleDict({"tokens": nn.Embedding(64, 16), "places": nn.Embedding(10, 16), "positions": nn.Embedding(10, 16)})
    report = inspect_model(model).by_name
    assert [(p.role, p.guess) for p in report.values()] == [
        (Role.TOKEN_EMBEDDING, False),
        (Role.TOKEN_EMBEDDING, True),
        (Role.POSITION_EMBEDDING, False),
    ]


class Conv2d(nn.Module):
    """A convolution of one's own, which has a weight and nothing else of torch's."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight.flatten(0, -4) if self.weight.ndim == 4 else self.weight[0])


class Products(nn.Module):
    """Matrices that no layer holds."""

    def __init__(self):
        super().__init__()
        self.one, self.many, self.added = (nn.Parameter(torch.randn(shape)) for shape in ((6, 9), (3, 9, 4), (1, 9, 4)))


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (1, 8, 3, 3, 3)])
def test_a_convolution_of_ones_own_is_one_by_its_weight(shape: tuple[int, ...]):
    model = nn.Sequential(Conv2d(*shape), nn.Flatten(), nn.Linear(8 * 4, 2))
    first, last, _ = inspect_model(model).parameters
    assert (first.role, first.axis, last.role) == (Role.FIRST_CONV, shape.index(8), Role.CLASSIFIER)
    optimizer = AdamMini(model.named_parameters(), lr=0.1, layouts=partition_model(model))
    before = model(torch.ones(1, 3, 4, 4)).square().sum()
    before.backward()
    optimizer.step()
    assert model(torch.ones(1, 3, 4, 4)).square().sum() != before


def test_bare_matrices_are_linear_by_guess_along_their_last_dimension():
    report = inspect_model(Products()).by_name
    assert [(p.role, p.axis, p.guess) for p in (report["one"], report["many"])] == [(Role.LINEAR, 1, True), (Role.LINEAR, 2, True)]
    assert "3 matrices" in report["many"].reason
    assert (report["added"].role, report["added"].guess) == (Role.OTHER, True)


def test_a_weight_of_inputs_by_outputs_is_known_by_its_bias():
    class MyLinear(nn.Module):
        def __init__(self, outputs: int):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.zeros(outputs))

    assert [inspect_model(MyLinear(n)).by_name["weight"].axis for n in (5, 7)] == [0, 1]


def test_feed_forward_layers_at_each_position_are_feed_forward_layers():
    block = nn.ModuleDict(
        {"attn": nn.MultiheadAttention(16, 2), "pos_ffn": nn.ModuleDict({"w_1": nn.Linear(16, 64), "w_2": nn.Linear(64, 16)})}
    )
    report = inspect_model(nn.Sequential(block, block)).by_name
    assert [report[f"0.pos_ffn.w_{i}.weight"].role for i in (1, 2)] == [Role.MLP_UP, Role.MLP_DOWN]


def test_one_output_per_token_is_the_head_of_a_language_model_whatever_the_width_of_the_table():
    model = nn.ModuleDict({"tokens": nn.Embedding(57, 8), "widen": nn.Linear(8, 16), "next": nn.Linear(16, 2), "score": nn.Linear(16, 57)})
    assert outputs(model)["score.weight"] is Role.LM_HEAD


def test_a_bare_matrix_turned_against_the_table_is_the_head():
    model = nn.ModuleDict({"tokens": nn.Embedding(57, 8), "body": nn.Linear(8, 8)})
    model.register_parameter("unembed", nn.Parameter(torch.randn(8, 57)))
    found = inspect_model(model).by_name["unembed"]
    assert (found.role, found.axis, found.guess) == (Role.LM_HEAD, 1, False)


def test_what_stands_beside_the_vectors_of_a_table_is_no_output():
    tower = lambda *n: nn.Sequential(nn.Linear(n[0], n[1]), nn.ReLU(), nn.Linear(n[1], n[2]))  # noqa: E731
    model = nn.ModuleDict({"bags": nn.ModuleList([nn.EmbeddingBag(9, 16)]), "low": tower(13, 32, 16), "top": tower(17, 32, 1)})
    assert set(outputs(model)) == {"top.2.weight"}


def test_what_a_tied_table_reads_is_no_output():
    model = nn.ModuleDict({"tokens": nn.Embedding(57, 16), "body": nn.Linear(16, 16), "score": nn.Linear(16, 57, bias=False)})
    model["score"].weight = model["tokens"].weight
    assert outputs(model) == {}


def test_what_is_joined_with_something_before_a_later_layer_reads_it_is_no_output():
    model = nn.ModuleDict({"fc": nn.Linear(50, 38), "core": nn.LSTM(45, 24), "policy": nn.Linear(24, 6), "value": nn.Linear(24, 1)})
    assert set(outputs(model)) == {"policy.weight", "value.weight"}
    deep = nn.ModuleList([nn.Linear(53, 35), nn.Linear(35, 20)])
    assert set(outputs(nn.ModuleDict({"deep": deep, "last": nn.Linear(92, 2)}))) == {"last.weight"}
    # Two heads that read what is joined before either are two outputs.
    heads = {"head": nn.Linear(42, 3), "picture": nn.Linear(42, 24), "up": nn.ConvTranspose2d(24, 3, 4)}
    assert set(outputs(nn.ModuleDict({"body": nn.Linear(8, 32), **heads}))) == {"head.weight"}


class Pooling(nn.Module):
    """One score for each place, by which places are weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(32, 12), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.out(self.fc(x).tanh()).softmax(1) * x).sum(1)


def test_a_number_that_weighs_is_no_output():
    assert set(outputs(nn.ModuleDict({"enter": nn.Linear(8, 32), "pool": Pooling(), "leave": nn.Linear(32, 5)}))) == {"leave.weight"}


def test_what_an_activation_leaves_of_the_time_vector_is_a_modulation():
    class Diffuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(6, 32)
            self.t_embedder = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Linear(32, 32))
            self.shared, self.other = nn.Sequential(nn.SiLU(), nn.Linear(32, 192)), nn.Sequential(nn.ReLU(), nn.Linear(48, 192))
            self.nothing, self.act = nn.Sequential(), nn.Sequential(nn.SiLU())
            self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(32, 2, 48) for _ in range(2)])
            self.leave = nn.Linear(32, 6)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor: ...

    roles = {p.name: p.role for p in inspect_model(Diffuses()).parameters}
    assert roles["shared.1.weight"] is Role.MODULATION
    assert roles["other.1.weight"] is not Role.MODULATION
    assert roles["leave.weight"] is Role.CLASSIFIER
    assert {roles["t_embedder.0.weight"], roles["t_embedder.2.weight"]} == {Role.TIME_EMBEDDING}


def test_other_sizes_of_patches_are_patches_too():
    model = nn.ModuleDict({"patches": nn.ModuleList([nn.Conv2d(3, 16, 4, 4), nn.Conv2d(3, 20, 8, 8)]), "deep": nn.Conv2d(16, 16, 2, 2)})
    roles = {p.name: p.role for p in inspect_model(model).parameters}
    assert [roles[f"patches.{i}.weight"] for i in range(2)] == [Role.PATCH_EMBEDDING] * 2
    assert roles["deep.weight"] is Role.CONV


def test_a_name_of_a_modulator_says_nothing_of_a_whole_network():
    class FiLM(nn.Module):
        def __init__(self):
            super().__init__()
            self.make = nn.Linear(8, 64)

    class FilmNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.on, self.leave = nn.Linear(10, 32), nn.ModuleList([FiLM(), FiLM()]), nn.Linear(32, 3)

    roles = {p.name: p.role for p in inspect_model(FilmNet()).parameters}
    assert {roles[f"on.{i}.make.weight"] for i in range(2)} == {Role.MODULATION}
    assert (roles["enter.weight"], roles["leave.weight"]) == (Role.LINEAR, Role.CLASSIFIER)


def test_a_layer_named_after_a_norm_makes_what_scales_it():
    block = lambda: nn.ModuleDict({"norm1": nn.Linear(32, 192), "fc": nn.Linear(32, 32)})  # noqa: E731
    roles = {p.name: p.role for p in inspect_model(nn.Sequential(block(), block())).parameters}
    assert [roles[f"1.{name}.weight"] for name in ("norm1", "fc")] == [Role.MODULATION, Role.LINEAR]


def test_the_last_layer_that_restores_a_width_for_convolutions_is_no_output():
    stages = nn.ModuleList([nn.Conv1d(2, 12, 8, 4), nn.Conv1d(12, 20, 8, 4)])
    back = nn.ModuleList([nn.ConvTranspose1d(20, 12, 8, 4), nn.ConvTranspose1d(12, 2, 8, 4)])
    model = nn.ModuleDict({"down": stages, "up": back, "lstm": nn.LSTM(20, 20, bidirectional=True), "linear": nn.Linear(40, 20)})
    assert outputs(model) == {}


def test_hand_written_layers_that_unpack_a_graph_make_a_graph_network():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(12, 12)

        def forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
            x, edge_index = data
            return torch.zeros_like(x).index_add(0, edge_index[1], self.project(x)[edge_index[0]])

    report = inspect_model(nn.Sequential(Layer(), Layer(), nn.Linear(12, 3)))
    assert str(report.architecture) == "gnn"
    assert {report.by_name[f"{i}.project.weight"].role for i in range(2)} == {Role.GRAPH_CONV}


class Crossed(nn.Module):
    """The output is registered first, and what is called a head, last, is read by it."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.body, self.head = nn.Linear(20, 7), nn.Linear(12, 16), nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(F.relu(self.head(F.relu(self.body(x)))))


def test_the_order_of_use_counts_and_not_that_of_registration_where_it_can_be_run():
    assert outputs(Crossed()) == {"z.weight": Role.CLASSIFIER}
    assert "running showed" in inspect_model(Crossed()).by_name["z.weight"].reason


def test_a_network_in_a_module_without_a_forward_is_run_too():
    class Holder(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Crossed()

    assert outputs(Holder()) == {"net.z.weight": Role.CLASSIFIER}
    assert "running showed" in inspect_model(Holder()).by_name["net.z.weight"].reason


class Picks(nn.Module):
    """Scores choose the best places; what is there is read."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.body, self.score_head, self.box = nn.Linear(9, 16), nn.Linear(16, 5), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        scores = self.score_head(x)
        if self.soft:
            return self.box(x * scores.softmax(-1)[..., :1])
        return scores, self.box(x.gather(1, scores.amax(-1).topk(2, 1).indices.unsqueeze(-1).expand(-1, -1, 16)))


def test_to_choose_by_scores_is_not_to_read_them():
    assert set(outputs(Picks(soft=False))) == {"score_head.weight", "box.weight"}
    assert set(outputs(Picks(soft=True))) == {"box.weight"}


class Twice(nn.Module):
    """A layer whose result is read once and given once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.refine, self.back = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.refine(x + self.back(self.refine(x)))


def test_a_layer_that_is_read_and_given_is_left_to_its_names_and_numbers():
    assert outputs(Twice()) == {}


class Block(nn.Module):
    """Ends in its stream of features: nothing in it is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def test_a_block_without_a_head_has_no_output():
    assert outputs(Block()) == {}


class Adversaries(nn.Module):
    """What generates, and beside it what is not run and reads as many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 20))
        self.d = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.g(z)


def test_of_two_networks_that_are_held_together_each_has_its_output():
    assert set(outputs(Adversaries())) == {"g.2.weight", "d.2.weight"}


def test_what_a_run_showed_of_the_ends_lives_in_a_checkpoint():
    evidence = probe_attention(Crossed(), torch.rand(2, 12))
    assert (evidence.whole.read, evidence.whole.unread) == (("body.weight", "head.weight"), ("z.weight",))
    assert Evidence.from_plain(evidence.to_plain()) == evidence
