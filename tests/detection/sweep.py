"""Inspects every model that a library can build, on the meta device, and counts what was found.

    python -m tests.detection.sweep timm|transformers|diffusers|pyg [--only REGEX] [--guesses] [--json FILE]

Prints the models that raise, the counts by architecture, and the share of elements whose role is a guess.
"""

import argparse
import collections
import inspect
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

from lightning_adam_mini.detection import inspect_model

Build = Callable[[], nn.Module]


def timm_models() -> Iterator[tuple[str, Build]]:
    import timm

    for name in timm.list_models():
        yield name, lambda name=name: timm.create_model(name, pretrained=False)


_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers", "depth")


def shallow(config, limit: int):
    """Every stack of layers in a config at most `limit` deep: the kinds of layers stay, the copies go."""
    for name in _DEPTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > limit:
            with suppress(Exception):
                setattr(config, name, limit)
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list):
        with suppress(Exception):
            config.layer_types = kinds[:limit]
    for value in list(vars(config).values()):
        if hasattr(value, "model_type"):
            shallow(value, limit)
    return config


def transformers_models() -> Iterator[tuple[str, Build]]:
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    heads = [modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES]

    def build(kind: str, classes: list[str]) -> nn.Module:
        error: Exception | None = None
        for cls in classes:
            for limit in (4, 10**6):  # some configs refuse to be cut
                for extra in ({}, {"prediction_length": 8}, {"pad_token_id": 0}, {"is_decoder": True}):
                    try:
                        config = configuration_auto.CONFIG_MAPPING[kind](**extra)
                        return getattr(transformers, cls)._from_config(shallow(config, limit))
                    except Exception as e:
                        error = error or e
        assert error is not None
        raise error

    for kind in configuration_auto.CONFIG_MAPPING_NAMES:
        classes = [names[kind] for names in heads if kind in names]
        classes = [name if isinstance(name, str) else name[0] for name in classes]
        if classes:
            yield kind, lambda kind=kind, classes=classes: build(kind, classes)


def diffusers_models() -> Iterator[tuple[str, Build]]:
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    for name in sorted({name for names in diffusers.models._import_structure.values() for name in names}):
        try:
            cls = getattr(diffusers, name, None) or getattr(diffusers.models, name)
        except Exception:
            continue
        if inspect.isclass(cls) and issubclass(cls, ModelMixin):
            yield name, lambda cls=cls: cls()


def pyg_models() -> Iterator[tuple[str, Build]]:
    import torch_geometric.nn as g

    meta = (["a", "b"], [("a", "x", "b"), ("b", "y", "a")])
    known = {
        "in_channels": 16, "out_channels": 32, "hidden_channels": 32, "channels": 32, "num_layers": 2, "num_relations": 3, "K":
        2, "kernel_size": 2, "dim": 2, "edge_dim": 8, "heads": 4, "metadata": meta, "in_edge_channels": 8, "num_nodes": 20,
        "embedding_dim": 16, "aggregators": ["mean"], "scalers": ["identity"], "deg": torch.ones(8, dtype=torch.long),
        "num_node_types": 2, "num_edge_types": 2, "edge_type_emb_dim": 8, "edge_attr_emb_dim": 8, "alpha": 0.1, "theta": 0.5,
        "layer": 1, "pos_channels": 3, "num_types": 2, "ratio": 0.5, "walk_length": 2, "emb_dim": 8, "embed_dim": 8,
        "space_dimensions": 2, "propagate_dimensions": 8, "k": 2, "first_aggr": True, "filter_size": 2, "depth": 2,
        "num_timesteps": 2, "num_blocks": 2, "num_bilinear": 4, "num_spherical": 3, "num_radial": 3, "dim_emb": 8,
        "int_emb_size": 8, "basis_emb_size": 4, "out_emb_channels": 8, "dim_pe_in": 8, "dim_pe_out": 8, "num_classes": 4,
        "num_groups": 2, "hidden_node_channels": 16, "hidden_edge_channels": 16, "channel_list": [16, 32, 7],
    }  # fmt: skip

    def build(cls: type) -> nn.Module:
        args = {}
        for name, p in inspect.signature(cls).parameters.items():
            if name in known and p.default is inspect.Parameter.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                args[name] = known[name]
        for name in ("nn", "conv", "convs", "mlp"):
            if name in inspect.signature(cls).parameters and inspect.signature(cls).parameters[name].default is inspect.Parameter.empty:
                hidden = args.get("in_channels", 16)
                args[name] = nn.Sequential(nn.Linear(hidden, 32), nn.ReLU(), nn.Linear(32, 512))
        return cls(**args)

    import torch_geometric.nn.models as models

    for name in (*g.conv.__all__, *models.__all__):
        cls = getattr(g, name, None)
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and name not in ("MessagePassing", "MetaLayer", "HeteroConv"):
            yield name, lambda cls=cls: build(cls)


SOURCES = {"timm": timm_models, "transformers": transformers_models, "diffusers": diffusers_models, "pyg": pyg_models}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=sorted(SOURCES))
    parser.add_argument("--only", default="", help="inspect only the models whose name this regular expression finds")
    parser.add_argument("--guesses", action="store_true", help="print each guess, one line per layer class and reason")
    parser.add_argument("--json", help="write what was found to this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    architectures, reasons = collections.Counter(), collections.defaultdict(collections.Counter)
    unbuilt, failed, guessed, total, seconds = [], [], 0, 0, 0.0
    found, examples = {}, {}
    for name, build in SOURCES[args.library]():
        if not re.search(args.only, name):
            continue
        try:
            with torch.device("cpu" if args.library == "pyg" else "meta"):
                model = build()
        except Exception as error:
            unbuilt.append(f"{name}: {type(error).__name__}: {str(error)[:120]}")
            continue
        start = time.perf_counter()
        try:
            report = inspect_model(model)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        seconds += time.perf_counter() - start
        architectures[report.architecture.value] += 1
        sizes = {p.name: int(torch.Size(p.shape).numel()) for p in report.parameters}
        total += sum(sizes.values())
        guessed += sum(sizes[p.name] for p in report.guesses)
        for p in report.guesses:
            reasons[f"{p.role}: {p.reason}"][name] += sizes[p.name]
            examples.setdefault(f"{p.role}: {p.reason}", f"{p.name} {list(p.shape)}")
        found[name] = {
            "architecture": report.architecture.value,
            "guessed": sum(sizes[p.name] for p in report.guesses),
            "elements": sum(sizes.values()),
            "other": sum(sizes[p.name] for p in report.parameters if p.role.value in ("linear", "other")),
        }
    print(f"{args.library}: {sum(architectures.values())} inspected, {len(failed)} raised, {len(unbuilt)} could not be built")
    for line in failed:
        print(f"  raised: {line}")
    for line in unbuilt:
        print(f"  not built: {line}")
    print("architectures: " + ", ".join(f"{kind} {count}" for kind, count in architectures.most_common()))
    print(f"guesses: {100 * guessed / max(total, 1):.3f} % of {total:,} elements; {seconds:.1f} s of inspection")
    if args.guesses:
        for reason, models in sorted(reasons.items(), key=lambda item: -sum(item[1].values())):
            share = 100 * sum(models.values()) / max(total, 1)
            print(f"  {share:.4f} % in {len(models)} models ({', '.join(list(models)[:4])}): {reason} | {examples[reason]}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
