"""The Hessian of small networks: the Adam-mini paper's figures of it, and audits of the recipes' models."""

from experiments.hessian.command import main as main
