"""Names within real wrappers, against those that the same model has before it is wrapped."""

from __future__ import annotations

import lightning as L
import lightning_fabric
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from lightning_adam_mini import inspect_model, partition_model
from lightning_adam_mini.detection import names as names_module
from lightning_adam_mini.detection import parameter_names
from lightning_adam_mini.optim.naming import WRAPPED, match_names

pytestmark = pytest.mark.filterwarnings("ignore")


class OwnDDP(DistributedDataParallel):
    """As a user writes it to pass attributes through."""


WRAPPERS = {
    "compile": lambda m: torch.compile(m, backend="eager"),
    "DDP": DistributedDataParallel,
    "OwnDDP": OwnDDP,
    "DataParallel": nn.DataParallel,
    "Fabric": lambda m: L.Fabric(accelerator="cpu", devices=1).setup_module(m),
    "lightning_fabric": lambda m: lightning_fabric.Fabric(accelerator="cpu", devices=1).setup_module(m),
    "checkpoint": checkpoint_wrapper,
    "offload": offload_wrapper,
}
ATTRIBUTES = ("net", *WRAPPED, "_original_module")


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))


class Holding(nn.Module):
    """A model with its network in an attribute, and perhaps a layer beside whose names are those of a layer of the network."""

    def __init__(self, attribute, beside=True):
        super().__init__()
        setattr(self, attribute, net())
        if beside:
            self.add_module("0", nn.Linear(4, 4))
        self.attribute = attribute

    def forward(self, x):
        return getattr(self, self.attribute)(self.get_submodule("0")(x))


def check(wrapped, truth):
    """Truth: the names before, in the order of the parameters."""
    assert list(parameter_names(wrapped).values()) == truth
    assert list(map(id, parameter_names(wrapped))) == list(map(id, wrapped.parameters()))
    assert [p.name for p in inspect_model(wrapped).parameters] == truth
    layouts = partition_model(wrapped)
    assert list(layouts) == truth
    given = {name: id(p) for name, p in wrapped.named_parameters()}
    if len(given) < len(truth):  # torch's checkpoints take an attribute for their own, and two parameters have one name
        assert type(wrapped).__name__ in ("CheckpointWrapper", "OffloadWrapper")
        return
    keys = match_names(given, layouts)
    assert [given[name] for name in keys] == list(map(id, parameter_names(wrapped)))
    assert list(keys.values()) == truth


def names_of(model):
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_attribute_keeps_its_name_whatever_it_is(attribute, beside):
    model = Holding(attribute, beside)
    check(model, names_of(model))
    outer = Holding(attribute, beside)
    setattr(outer, attribute, model)
    check(outer, names_of(outer))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model(wrapper, attribute):
    model = Holding(attribute)
    truth = names_of(model)
    check(WRAPPERS[wrapper](model), truth)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_model_with_a_wrapped_part(wrapper, attribute):
    model = Holding(attribute)
    truth = names_of(model)
    setattr(model, attribute, WRAPPERS[wrapper](getattr(model, attribute)))
    check(model, truth)
    if "abric" not in wrapper:
        check(WRAPPERS[wrapper](model), truth)


# Fabric refuses a second Fabric, and of a compiled model torch.compile makes a function.
PAIRS = [(a, b) for a in WRAPPERS for b in WRAPPERS if not ("abric" in a and "abric" in b) and (a, b) != ("compile", "compile")]


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_wrappers_in_any_order(outer, inner):
    model = Holding("module")
    truth = names_of(model)
    check(WRAPPERS[outer](WRAPPERS[inner](model)), truth)


@pytest.mark.parametrize("each_layer", [False, True])
def test_fsdp1(each_layer):
    model = Holding("_fsdp_wrapped_module")
    truth = names_of(model)
    policy = ModuleWrapPolicy({nn.Linear}) if each_layer else None
    sharded = FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True)
    check(sharded, truth)
    sharded(torch.ones(2, 4)).sum().backward()
    check(sharded, truth)
    check(torch.compile(sharded, backend="eager"), truth)


def test_fsdp1_with_flat_parameters():
    model = Holding("net")
    policy = ModuleWrapPolicy({nn.Linear})
    flat = FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=False)
    check(flat, ["net.0._flat_param", "net.2.0._flat_param", "0._flat_param"])


def test_what_changes_a_model_in_place_adds_nothing():
    for change in (
        lambda m: m.compile(backend="eager"),
        lambda m: fully_shard(m, mesh=init_device_mesh("cpu", (1,))),
    ):
        model = Holding("module")
        truth = names_of(model)
        change(model)
        check(model, truth)
    compiled = torch.compile(Holding("module"), backend="eager")
    fully_shard(compiled, mesh=init_device_mesh("cpu", (1,)))
    check(compiled, truth)


def test_tied_weights_within_and_beside_wrappers():
    def tied():
        model = nn.Module()
        model.body = nn.ModuleDict({"embedding": nn.Embedding(16, 4), "module": nn.Linear(4, 4)})
        model.head = nn.Linear(4, 16)
        model.head.weight = model.body["embedding"].weight
        model.again = model.body
        return model

    bare = tied()
    truth = names_of(bare)
    names: dict[int, list[str]] = {}
    for name, p in bare.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    aliases = {first: tuple(rest) for first, *rest in names.values()}
    assert aliases["body.embedding.weight"] == ("head.weight", "again.embedding.weight")
    for wrapper in WRAPPERS.values():
        part, both = tied(), tied()
        part.body = wrapper(part.body)  # `again` holds it bare
        both.body = both.again = wrapper(both.body)
        both.head = wrapper(both.head)
        for model in (part, both, WRAPPERS["DDP"](both)):
            check(model, truth)
            assert {p.name: p.aliases for p in inspect_model(model).parameters} == aliases


def test_a_compiled_copy_of_itself_in_an_attribute():
    model = net()
    truth = names_of(model)
    model.compiled = torch.compile(model, backend="eager")
    check(model, truth)


def test_a_wrapper_with_parameters_beside_hides_none():
    class Scaled(DistributedDataParallel):
        def __init__(self, module):
            super().__init__(module)
            self.scale = nn.Parameter(torch.ones(()))
            self.add_module("0", nn.Linear(2, 2))

    model = Scaled(net())
    check(model, names_of(model))
    check(torch.compile(model, backend="eager"), names_of(model))


def test_a_class_is_no_wrapper_because_of_its_name():
    for name, package in (("DataParallel", __name__), ("OptimizedModule", "torch_of_mine"), ("_FabricModule", "scvi.module")):
        model = type(name, (nn.Module,), {"__module__": package})()
        model.module, model._orig_mod, model._forward_module = net(), net(), net()
        check(model, names_of(model))


@pytest.mark.parametrize(("package", "name"), [key for key in names_module._WRAPPERS if key[0] in ("deepspeed", "apex")])
def test_wrappers_of_what_is_not_installed(package, name):
    model = Holding("module")
    truth = names_of(model)
    wrapper = type("Own", (type(name, (nn.Module,), {"__module__": f"{package}.some.where"}),), {"__module__": __name__})()
    wrapper.module = model
    check(wrapper, truth)


def test_the_parts_that_the_optimizer_knows_are_those_that_wrappers_add():
    assert set(WRAPPED) == set(names_module._WRAPPERS.values())
