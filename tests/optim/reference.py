"""Algorithm 1 of Adam-mini (arXiv 2406.16793), written out element by element in float64 Python. Shares no code with the package."""

from __future__ import annotations

import itertools
import math

import numpy as np


class ReferenceAdamMini:
    """``blocks[name]`` maps each index of a parameter to the label of its block."""

    def __init__(self, params, blocks, lr, betas, eps, weight_decay, decoupled=True, maximize=False):
        self.params = {name: np.array(p, dtype=np.float64) for name, p in params.items()}
        self.blocks, self.lr, self.betas, self.eps = blocks, lr, betas, eps
        self.weight_decay, self.decoupled, self.maximize = weight_decay, decoupled, maximize
        self.m = {name: np.zeros_like(p) for name, p in self.params.items()}
        self.v = {name: dict.fromkeys(blocks[name].values(), 0.0) for name in params}
        self.t = 0

    def step(self, grads):
        self.t += 1
        beta1, beta2 = self.betas
        for name, p in self.params.items():
            g = np.array(grads[name], dtype=np.float64) * (-1 if self.maximize else 1)
            if self.weight_decay and self.decoupled:
                p *= 1 - self.lr * self.weight_decay
            elif self.weight_decay:
                g = g + self.weight_decay * p
            members: dict = {}
            for index, block in self.blocks[name].items():
                members.setdefault(block, []).append(g[index])
            for block, values in members.items():
                mean = math.fsum(x * x for x in values) / len(values)
                self.v[name][block] = beta2 * self.v[name][block] + (1 - beta2) * mean
            self.m[name] = beta1 * self.m[name] + (1 - beta1) * g
            for index in itertools.product(*(range(n) for n in p.shape)):
                v_hat = self.v[name][self.blocks[name][index]] / (1 - beta2**self.t)
                m_hat = self.m[name][index] / (1 - beta1**self.t)
                p[index] -= self.lr * m_hat / (math.sqrt(v_hat) + self.eps)


def indices(shape):
    return list(itertools.product(*(range(n) for n in shape)))


def whole(shape):
    return dict.fromkeys(indices(shape), 0)


def per_parameter(shape):
    return {i: i for i in indices(shape)}


def rows(shape):
    return {i: i[0] for i in indices(shape)}


def columns(shape):
    return {i: i[1] for i in indices(shape)}


def row_groups(labels, axis=0):
    """``labels[k]`` is the block of line ``k`` along ``axis``."""

    def blocks(shape):
        return {i: labels[i[axis]] for i in indices(shape)}

    return blocks
