"""An optimizer's steps beside exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.optim.backends import exact
from tests.optim.backends.table import double, give, layouts_of, make_params

OPTIONS = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, decoupled_weight_decay=True, maximize=False)


def assert_close(got, expected, bound, what):
    """Compare arrays, each element within its own bound; what is not finite may be anything."""
    got, expected, bound = (np.broadcast_to(a, np.shape(expected)) for a in (got, expected, bound))
    wrong = ~(np.abs(got - expected) <= bound) & np.isfinite(expected) & np.isfinite(bound)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        pytest.fail(f"{what}: {wrong.sum()} of {wrong.size} differ, as at {at}: {got[at]} and not {expected[at]}, within {bound[at]:.2e}")


def assert_near(got, expected, what):
    """Compare arrays after some steps in float32."""
    assert_close(got, expected, 2e-6 + 2e-5 * np.abs(expected), what)


class Beside:
    """Checks each step against an exact one from where the optimizer was: what is added is no more than one step's rounding.

    Args:
        optimizer: The optimizer.
        params: Its parameters, by name.
        kinds: What they are.
        options: Its options, all of them.
        way: Which way all of them are stepped; None if that may be any.
        roundings: How often a step may round weights.
    """

    def __init__(self, optimizer, params, kinds, options, way=None, roundings=2):
        self.optimizer, self.params, self.kinds, self.options, self.t = optimizer, params, kinds, options, 0
        self.way, self.roundings = way, roundings if way is None else way.roundings

    @classmethod
    def make(cls, way, kinds, dtype=torch.float32, momentum_dtype=None, **options):
        params, options = make_params(kinds, dtype=dtype, device=way.device), {**OPTIONS, **options}
        optimizer = way.optimizer(params.items(), layouts_of(kinds), momentum_dtype=momentum_dtype, **options)
        return cls(optimizer, params, kinds, options, way)

    def moments(self, name):
        p = self.params[name]
        state = self.optimizer.state[p]
        if not state:
            return exact.at_start(double(p), self.kinds[name].numbers)
        kept = [state[key] for key in ("exp_avg_sq", "exp_avg_sq_col") if key in state]
        assert [tuple(v.shape) for v in kept] == [margin.block_shape for margin in self.kinds[name].layout.margins]
        m = double(state["exp_avg"])
        if "exp_avg_scale" in state:
            m = exact.decoded(m, double(state["exp_avg_scale"]), self.lengths(name))
        return exact.Moments(double(p), m, np.concatenate([double(v).ravel() for v in kept]))

    def lengths(self, name):
        shape = self.kinds[name].shape
        return exact.run_lengths(int(np.prod(shape)), exact.row_by_hand(shape))

    def step(self, grads=None):
        """Take a step, of all parameters, and check it."""
        if grads is not None:
            give(self.params, grads)
        before = {name: self.moments(name) for name in self.params}
        self.optimizer.step()
        if self.way is not None:
            self.way.check(self.optimizer)
        self.t += 1
        for name, p in self.params.items():
            state, where = self.optimizer.state[p], f"of {name!r} in step {self.t}"
            args = (before[name], double(p.grad), self.t, self.kinds[name].numbers, self.options)
            in_codes = "exp_avg_scale" in state
            expected = exact.one_step(*args)
            bounds = exact.bounds(*args, p.dtype, torch.float32 if in_codes else state["exp_avg"].dtype, self.roundings)
            got = self.moments(name)
            assert_close(got.p, expected.p, bounds.p, f"weights {where}")
            assert_close(got.v, expected.v, bounds.v, f"second moments {where}")
            if not in_codes:
                assert_close(got.m, expected.m, bounds.m, f"first moments {where}")
                continue
            codes, scales = double(state["exp_avg"]), double(state["exp_avg_scale"])
            wrong = exact.wrong_codes(expected.m, bounds.m, codes, scales, self.lengths(name))
            assert not wrong.any(), f"{wrong.sum()} of {wrong.size} codes {where} are off, as at {np.argwhere(wrong)[0]}"
