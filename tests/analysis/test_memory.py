"""Counted bytes against those of real optimizers after one real step, to the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, partition_model
from lightning_adam_mini.analysis import count_memory
from lightning_adam_mini.analysis.memory import PARTITIONS
from lightning_adam_mini.optim import state_bytes


def resnet18() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("resnet18", num_classes=10)


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=101,  # odd sizes, so that blocks of 256 do not fit
        hidden_size=48,
        intermediate_size=77,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def tied_gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    return transformers.GPT2LMHeadModel(config)


class LoRA(nn.Module):
    """A frozen linear layer and the low-rank update that trains."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def lora_llama() -> nn.Module:
    model = llama().requires_grad_(False)
    for module in list(model.modules()):
        for name in ("q_proj", "v_proj"):
            if isinstance(getattr(module, name, None), nn.Linear):
                setattr(module, name, LoRA(getattr(module, name)))
    return model


class Odd(nn.Module):
    """A scalar, an empty tensor, a transposed one, and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.transposed = nn.Parameter(torch.ones(4, 6).T)
        self.gates = nn.LSTM(4, 6)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "llama": llama,
    "tied_gpt2": tied_gpt2,
    "lora_llama": lora_llama,
    "odd": Odd,
}


@pytest.fixture(params=MODELS)
def make(request) -> Callable[[], nn.Module]:
    return MODELS[request.param]


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_gradients_and_torch_optimizers(make, dtype):
    memory, model = count_memory(on_meta(make), dtype=dtype), make().to(dtype)
    adamw = stepped(torch.optim.AdamW(model.parameters() if all(p.requires_grad for p in model.parameters()) else trained(model)))
    assert memory.parameters == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None) > 0
    assert memory.state("AdamW").total == state_bytes(adamw)
    sgd = stepped(torch.optim.SGD(trained(model), lr=0.1, momentum=0.9))
    assert memory.state("SGD").total == state_bytes(sgd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_adam_mini_with_every_partition(make, dtype):
    memory = count_memory(on_meta(make), dtype=dtype)
    totals = []
    for partition in PARTITIONS:
        model = make().to(dtype)
        optimizer = stepped(AdamMini(trained(model), layouts=partition_model(model, partition)))
        state = memory.state("AdamMini", partition)
        assert state.total == state_bytes(optimizer)
        assert state.second_moments == sum(v.numel() for s in optimizer.state.values() for k, v in s.items() if k.startswith("exp_avg_sq"))
        totals.append(state.total)
    assert totals[0] < totals[-1]  # adam_mini, adam


@pytest.mark.parametrize("momentum_dtype", [torch.float32, torch.bfloat16, "8bit"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adam_mini_with_another_momentum_dtype(make, dtype, momentum_dtype):
    memory = count_memory(on_meta(make), ["adam_mini"], dtype=dtype, momentum_dtype=momentum_dtype)
    model = make().to(dtype)
    optimizer = stepped(AdamMini(trained(model), layouts=partition_model(model, "adam_mini"), momentum_dtype=momentum_dtype))
    assert memory.state("AdamMini", "adam_mini").total == state_bytes(optimizer)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((0,), 0), ((1,), 4), ((4095,), 4 * 4095), ((4096,), 4096 + 4 * 16), ((4097,), 4097 + 4 * 17), ((50, 257), 50 * (257 + 8)),
     ((500, 64), 500 * (64 + 4)), ((64, 32, 3, 3), 64 * (288 + 8)), ((8, 16, 128), 8 * 16 * (128 + 4)), ((2000, 3), 6000 + 4 * 24)],
)  # fmt: skip
def test_8_bit_momentum_has_a_scale_for_each_256_elements_of_the_rows_of_large_tensors(shape, expected):
    model = nn.Module()
    model.w = nn.Parameter(torch.empty(shape, device="meta"))
    assert count_memory(model, ["adam"], momentum_dtype="8bit").state("AdamMini", "adam").momentum == expected


def test_a_smaller_momentum_changes_adam_mini_alone():
    model = on_meta(resnet18)
    wide, narrow = count_memory(model, ["adam_mini"]), count_memory(model, ["adam_mini"], momentum_dtype=torch.bfloat16)
    assert narrow.state("AdamMini", "adam_mini").momentum * 2 == wide.state("AdamMini", "adam_mini").momentum
    assert narrow.state("AdamW") == wide.state("AdamW")


def test_each_parameter_counts_in_its_own_dtype():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 4, bias=False, dtype=torch.bfloat16), nn.Linear(4, 2, bias=False))
    memory = count_memory(model)
    assert memory.dtypes == {"bfloat16": 32, "float32": 8}
    assert memory.parameters == 2 * 32 + 4 * 8
    assert memory.state("AdamMini", "adalayer").total == 2 * 32 + 4 * 8 + 2 * 4 + 2 * 4


def test_integers_keep_their_dtype():
    model = nn.Linear(8, 4, bias=False)
    model.codes = nn.Parameter(torch.zeros(100, dtype=torch.int8), requires_grad=False)
    assert count_memory(model, dtype=torch.bfloat16).parameters == 2 * 32 + 100


def test_a_tied_weight_counts_once():
    memory = count_memory(on_meta(tied_gpt2))
    untied = count_memory(on_meta(lambda: _untie(tied_gpt2())))
    assert untied.elements - memory.elements == 64 * 24


def _untie(model: nn.Module) -> nn.Module:
    model.lm_head = nn.Linear(24, 64, bias=False)
    return model


def test_a_wrapped_model_counts_as_the_model():
    wrapped = count_memory(torch.compile(llama()))  # names begin with _orig_mod.
    assert wrapped.states == count_memory(llama()).states


def test_a_frozen_model_has_no_state():
    memory = count_memory(resnet18().requires_grad_(False))
    assert (memory.trainable, memory.gradients) == (0, 0)
    assert {state.total for state in memory.states} == {0}
    assert memory.parameters > 0


def test_complex_parameters_are_refused():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"'weight' is complex .*torch\.view_as_real"):
        count_memory(model)


def test_unknown_partition():
    with pytest.raises(ValueError, match="'adam_mimi' is unknown"):
        count_memory(nn.Linear(2, 2), ["adam_mimi"])
    with pytest.raises(KeyError, match="AdamMini sgd was not counted"):
        count_memory(nn.Linear(2, 2)).state("AdamMini", "sgd")


@pytest.mark.parametrize("combined", ["schedule_free", "galore:rank=4", "sophia"])
@pytest.mark.parametrize("partition", ["adam", "adam_mini", "auto"])
def test_combinations_are_counted_to_the_byte(combined, partition):
    from lightning_adam_mini import combine_
    from tests.combine.train import Net, gradients, make

    model = Net()
    optimizer = combine_(make(model, partition), combined, model)
    if combined == "sophia":
        optimizer.update_hessian(model.loss())
    gradients(model, 0)
    optimizer.step()
    assert state_bytes(optimizer) == count_memory(model, [partition], combine=[combined]).state("AdamMini", partition, combined).total


def test_training_block_by_block_takes_the_largest_block():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    assert count_memory(model, ["adam"], combine=["badam"]).state("AdamMini", "adam", "badam").total == 8 * 36 + 8
    with pytest.raises(ValueError, match="no combination 'sofia'"):
        count_memory(model, ["adam"], combine=["sofia"])
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"ScheduleFree does not go with orthogonalised updates .* parameter '0.weight'"):
        count_memory(model, ["muon"], combine=["schedule_free"])
