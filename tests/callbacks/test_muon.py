"""Runs of a trainer whose hidden matrices step by orthogonalised updates."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_adam_mini import AdamMiniCallback, AdamMiniWarning, MatrixLayout


class Words(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 24)
        self.block = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(24, 40)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.block(self.table(batch[0])))[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


def fit(folder: Path, epochs=4, callbacks=(), ckpt_path=None, logger=None):
    module = Words()
    torch.manual_seed(1)
    data = DataLoader(TensorDataset(torch.randint(40, (32, 9))), batch_size=8)
    saved = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2, "logger": logger or False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[*callbacks, saved], **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


@pytest.mark.parametrize(("partition", "momentum_dtype"), [("muon", None), ("normuon", None), ("normuon", "8bit")])
def test_a_run_resumes_exactly_and_goes_on_with_adamw(tmp_path, partition, momentum_dtype):
    def callbacks():
        return [AdamMiniCallback(partition, momentum_dtype=momentum_dtype)]

    trainer, whole = fit(tmp_path / "whole", callbacks=callbacks())
    matrices = {name for name, layout in trainer.optimizers[0].layouts.items() if isinstance(layout, MatrixLayout)}
    assert matrices == {f"block.{name}.weight" for name in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")} or (
        matrices
        == {f"block.{name}" for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")}
    )
    half = str(tmp_path / "whole" / "epoch=1.ckpt")
    _, resumed = fit(tmp_path / "resumed", callbacks=callbacks(), ckpt_path=half)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    plain, module = fit(tmp_path / "adamw", epochs=8, ckpt_path=str(tmp_path / "whole" / "epoch=3.ckpt"))
    assert type(plain.optimizers[0]) is torch.optim.AdamW
    batch = (next(iter(plain.train_dataloader))[0],)
    assert module.training_step(batch, 0) < whole.training_step(batch, 0)
    with pytest.warns(AdamMiniWarning, match="begun anew"):
        _, back = fit(tmp_path / "auto", epochs=8, callbacks=[AdamMiniCallback()], ckpt_path=str(tmp_path / "whole" / "epoch=3.ckpt"))
    assert back.training_step(batch, 0) < whole.training_step(batch, 0)


def test_sizes_of_updates_are_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer, _ = fit(tmp_path / "c", callbacks=[AdamMiniCallback("normuon")], logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("weight_update.")]
    update = trainer.optimizers[0].matrix_updates()
    assert len(update) == 4
    up = next(tag for tag in tags if tag.endswith("linear1.weight/rms"))
    # At the second logging step the rate is the configured one, of which updates have .2.
    assert events.Scalars(up)[0].value == pytest.approx(0.2 * 1e-2, rel=1e-3)
    assert sum(tag.endswith(("/ratio", "/ratio/median")) for tag in tags) == 4
    assert any(tag.endswith("linear1.weight/row/median") for tag in tags)
    assert not any("linear1.weight" in tag for tag in events.Tags()["scalars"] if tag.startswith("weight_lr"))
