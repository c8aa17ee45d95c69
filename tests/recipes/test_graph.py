import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch_geometric.data import Data
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from lightning_adam_mini import inspect_model
from recipes.__main__ import main
from recipes.graph import ArxivData, DigitsGraphData, NodeClassifier, PlanetoidData
from recipes.graph.full_batch import FullBatchData
from recipes.graph.networks import drop_features

from .conftest import CONFIGS, QUIET

ARXIV = {"in_channels": 128, "num_classes": 40, "num_layers": 3}
GAT_ARXIV = {"network": "gat", **ARXIV, "hidden_channels": 250, "heads": 3, "loss_share": 0.5}


def parameters(model):
    return sum(parameter.numel() for parameter in model.net.parameters())


def ring(nodes=8, **masks):
    here = torch.arange(nodes)
    edges = torch.stack([torch.cat([here, here]), torch.cat([here.roll(1), here.roll(-1)])])
    return Data(x=torch.eye(nodes), y=here % 2, edge_index=edges, **masks)


class RingData(FullBatchData):
    def read(self):
        return ring(train_mask=torch.ones(8, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"network": "gcn", **ARXIV, "hidden_channels": 256}, 109_608),
        ({"network": "gcn", **ARXIV, "hidden_channels": 256, "use_labels": True, "loss_share": 0.5}, 119_848),
        ({**GAT_ARXIV, "use_labels": True, "target_attention": False}, 1_441_580),
        (GAT_ARXIV, 1_383_120),
        ({**GAT_ARXIV, "target_attention": False}, 1_381_580),
    ],
)
def test_parameter_counts_are_those_of_dgls_examples(arguments, expected):
    assert parameters(NodeClassifier(**arguments)) == expected


@pytest.mark.parametrize("network", ["gcn", "gat"])
def test_detection_calls_it_a_gnn(network):
    assert inspect_model(NodeClassifier(network)).architecture.value == "gnn"


@pytest.mark.parametrize("target_attention", [True, False])
def test_gat_attends_to_neighbours_only(target_attention):
    torch.manual_seed(0)
    model = NodeClassifier("gat", in_channels=8, num_classes=2, num_layers=1, target_attention=target_attention).eval()
    graph = ring()
    before = model(graph)
    graph.x[4] += 1.0
    changed = (model(graph) - before).abs().sum(dim=1) > 0
    assert changed.nonzero().flatten().tolist() == [3, 4, 5]


def test_edge_dropout_is_of_training_alone_and_leaves_a_node_to_itself():
    torch.manual_seed(0)
    model = NodeClassifier("gat", in_channels=8, num_classes=2, num_layers=1, dropout=0.0, input_dropout=0.0, edge_dropout=0.999)
    graph = ring()
    alone = Data(x=graph.x, edge_index=torch.empty(2, 0, dtype=torch.long))
    torch.testing.assert_close(model.train()(graph), model.eval()(alone))
    assert not torch.allclose(model.eval()(graph), model.eval()(alone))


def test_only_the_nodes_that_a_sample_was_drawn_for_form_the_loss():
    torch.manual_seed(0)
    model = NodeClassifier(in_channels=8, num_classes=2, dropout=0.0, input_dropout=0.0)
    sample = ring(train_mask=torch.ones(8, dtype=torch.bool), batch_size=3)
    seeds = ring(train_mask=torch.arange(8) < 3)
    assert torch.equal(model.training_step(sample, 0), model.training_step(seeds, 0))


@pytest.mark.skipif(WITH_PYG_LIB or WITH_TORCH_SPARSE, reason="a sampler is installed")
def test_sampling_without_a_sampler_is_refused():
    with pytest.raises(MisconfigurationException, match="needs pyg-lib, which is not installed"):
        DigitsGraphData(sample_neighbours=[5, 5, 5]).setup("fit")


@pytest.mark.skipif(not (WITH_PYG_LIB or WITH_TORCH_SPARSE), reason="NeighborLoader needs pyg-lib")
def test_training_on_samples(capsys):
    config = str(CONFIGS / "gcn_digits.yaml")
    sampled = ["--data.sample_neighbours", "[5, 5, 5]", "--data.batch_size", "10"]
    assert main(["fit", "--config", config, *QUIET, *sampled, "--trainer.max_epochs", "2"]) == 0
    assert "test accuracy" in capsys.readouterr().out


def test_samples_of_another_depth_than_the_model_are_refused():
    model = NodeClassifier()
    model.trainer = pl.Trainer(accelerator="cpu", logger=False)
    model.trainer.datamodule = RingData(sample_neighbours=[5])
    model.trainer.datamodule._graph = Data(x=torch.zeros(10, 64), y=torch.arange(10))
    with pytest.raises(MisconfigurationException, match="for 1 layers but the model has 3"):
        model.setup("fit")


def test_labels_that_form_the_loss_are_never_features():
    torch.manual_seed(0)
    model = NodeClassifier(in_channels=8, num_classes=2, use_labels=True, loss_share=0.5)
    seen = []
    model.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 8:].sum(dim=1).bool()))
    for _ in range(20):
        model.training_step(ring(train_mask=torch.arange(8) < 6), 0)
    known = torch.stack(seen)
    assert not known[:, 6:].any()  # no label of another split
    assert known[:, :6].any(dim=0).all()  # each training label in some step
    assert not known[:, :6].all(dim=0).any()  # none in all of them


def test_use_labels_with_nothing_hidden_is_refused():
    with pytest.raises(MisconfigurationException, match="set --model.loss_share 0.5"):
        NodeClassifier(use_labels=True)


def test_digits_graph_has_fifty_labels_and_disjoint_masks():
    data = DigitsGraphData()
    data.setup("fit")
    graph = next(iter(data.train_dataloader()))
    masks = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.sum(dim=1).tolist() == [50, 200, 1547]
    assert masks.sum(dim=0).eq(1).all()
    assert graph.is_undirected()
    assert not graph.has_self_loops()
    assert torch.bincount(graph.y[graph.train_mask]).tolist() == [5] * 10


def test_planetoid_reads_its_files(planetoid):
    data = PlanetoidData(str(planetoid))
    data.setup("fit")
    assert (data.in_channels, data.num_classes) == (12, 7)
    graph = next(iter(data.val_dataloader()))
    assert [int(mask.sum()) for mask in (graph.train_mask, graph.val_mask)] == [140, 500]
    sums = graph.x.to_dense().sum(dim=1)
    assert torch.logical_or(sums.sub(1).abs() < 1e-5, sums == 0).all()


def test_sparse_features_are_dropped_as_dense_ones_are():
    torch.manual_seed(0)
    dense = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    sparse = dense.to_sparse_coo().coalesce()
    assert torch.equal(drop_features(sparse, 0.5, training=False).to_dense(), dense)
    dropped = torch.stack([drop_features(sparse, 0.25, training=True).to_dense() for _ in range(2000)])
    assert torch.logical_or(dropped == 0, torch.isclose(dropped, dense / 0.75)).all()
    torch.testing.assert_close(dropped.mean(dim=0), dense, atol=0.1, rtol=0)


def test_missing_planetoid_says_what_was_looked_for(planetoid, tmp_path):
    (planetoid / "Cora" / "raw" / "ind.cora.graph").unlink()
    with pytest.raises(MisconfigurationException, match=r"looked in the folder .*raw for ind.cora.graph.*--data.download true"):
        PlanetoidData(str(planetoid)).setup("fit")


def test_arxiv_reads_its_folder(arxiv):
    data = ArxivData(str(arxiv))
    data.setup("fit")
    assert (data.in_channels, data.num_classes) == (128, 40)
    graph = next(iter(data.train_dataloader()))
    assert graph.is_undirected()
    assert graph.num_edges == 58
    assert [int(mask.sum()) for mask in (graph.train_mask, graph.val_mask, graph.test_mask)] == [20, 5, 5]


def test_missing_arxiv_says_what_was_looked_for(arxiv):
    (arxiv / "ogbn_arxiv" / "split" / "time" / "valid.csv.gz").unlink()
    with pytest.raises(MisconfigurationException, match=r"ogbn_arxiv for split/time/valid.csv.gz\. Download http"):
        ArxivData(str(arxiv)).setup("fit")


def test_a_graph_without_masks_is_refused():
    with pytest.raises(MisconfigurationException, match="no val_mask, test_mask"):
        RingData().setup("fit")


@pytest.mark.parametrize(("argument", "value", "found"), [("in_channels", "32", 64), ("num_classes", "3", 10)])
def test_a_graph_that_does_not_fit_is_refused(argument, value, found, capsys):
    config = str(CONFIGS / "gcn_digits.yaml")
    assert main(["fit", "--config", config, *QUIET, f"--model.{argument}", value]) == 1
    assert f"the graph has {found}; set --model.{argument} {found}." in capsys.readouterr().err


def test_several_devices_are_refused():
    model = NodeClassifier()
    model.trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    with pytest.raises(MisconfigurationException, match=r"set --trainer\.devices 1"):
        model.setup("fit")


@pytest.mark.parametrize("schedule", ["constant", "plateau", "cosine"])
def test_warm_up_reaches_the_peak(schedule, tmp_path):
    args = ["fit", "--config", str(CONFIGS / "gcn_digits.yaml"), *QUIET, "--trainer.max_epochs", "4", "--model.warmup", "0.5"]
    assert main([*args, "--model.schedule", schedule, "--trainer.callbacks", "null", "--trainer.enable_checkpointing", "true"]) == 0
    checkpoint = torch.load(next((tmp_path / "runs").rglob("*.ckpt")), weights_only=True)
    rate = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.0 if schedule == "cosine" else 1e-2)
