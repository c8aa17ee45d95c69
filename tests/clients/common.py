"""What a run through any library must show, and what makes two runs of one comparable."""

from __future__ import annotations

import torch

# A momentum per parameter is half of AdamW's state; the rest is second moments of blocks and of biases, and step counters.
HALF = 0.56


def _seed_by_step(trainer, *_):
    torch.manual_seed(trainer.global_step)


def per_step_randomness(pl):
    """A callback that seeds torch before each step by its number, so that a resumed run draws in it what an unbroken run draws.

    Args:
        pl: The distribution that the library trains with: ``lightning.pytorch`` or ``pytorch_lightning``.
    """
    return pl.callbacks.LambdaCallback(on_train_batch_start=_seed_by_step)


def state(module):
    """A copy of all weights and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(a, b):
    """Assert that two states are equal to the bit; else say how many tensors differ, and by how much."""
    assert a.keys() == b.keys()
    largest = {name: (a[name].double() - b[name].double()).abs().max().item() for name in a if not torch.equal(a[name], b[name])}
    assert not largest, f"{len(largest)} of {len(a)} tensors differ, by up to {max(largest.values()):.3g}: {list(largest)[:5]}"


def assert_differ(a, b):
    """Assert that two states are of the same model, trained differently."""
    assert a.keys() == b.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)


def assert_reported(callback, module, *optimizers):
    """Assert that the callback knows each parameter of the module by its name, and that the optimizers have blocks for all they train."""
    parameters = dict(module.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    layouts = {name: layout for optimizer in optimizers for name, layout in optimizer.layouts.items()}
    assert trained
    assert {p.name for p in callback.report.parameters} == set(parameters)
    assert {p.name for p in callback.report.parameters if p.trainable} == trained
    assert trained <= set(layouts) <= set(parameters)
    assert all(tuple(layout.shape) == tuple(parameters[name].shape) for name, layout in layouts.items())


def assert_halved(callback, optimizers, plain):
    """Assert that the callback counts the bytes which the optimizers hold after a run, and those of a run without it; ours are half."""
    ours, adamw = callback.optimizer_state_bytes
    print(f"optimizer state: {ours:,} of {adamw:,} bytes, {ours / adamw:.3f}")
    assert (ours, adamw) == (_held(optimizers), _held(plain))
    assert ours / adamw < HALF


def _held(optimizers):
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    storages = [value.untyped_storage() for state in states for value in state.values() if torch.is_tensor(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
