"""lightly (``pytorch_lightning``): self-supervised training with its modules, losses, transforms and schedules, as in its examples."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

pytest.importorskip("lightly", reason="needs lightly and timm: see tests/clients/README.md")
pytest.importorskip("timm", reason="needs lightly and timm: see tests/clients/README.md")

import pytorch_lightning as pl
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss
from lightly.models import ResNetGenerator, utils
from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.transforms import DINOTransform, MAETransform
from lightly.utils.optim import update_param_groups
from lightly.utils.scheduler import CosineWarmupScheduler, cosine_schedule
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader

from lightning_adam_mini import AdamMiniCallback
from tests.clients.common import assert_differ, assert_halved, assert_reported, assert_same, per_step_randomness, state

EPOCHS, STEPS, BATCH = 2, 3, 4


class DINO(pl.LightningModule):
    """A student and a frozen teacher, whose last layers are weight-normed; the student's has no gradient in the first epoch."""

    transform = DINOTransform(global_crop_size=32, local_crop_size=16, n_local_views=2)

    def __init__(self):
        super().__init__()
        resnet = ResNetGenerator("resnet-9", width=0.25)
        backbone = torch.nn.Sequential(*list(resnet.children())[:-1], torch.nn.AdaptiveAvgPool2d(1))
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(128, 256, 64, 512, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(128, 256, 64, 512)
        utils.deactivate_requires_grad(self.teacher_backbone)
        utils.deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=512, warmup_teacher_temp_epochs=1)

    def forward(self, x):
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x):
        return self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))

    def training_step(self, batch, batch_idx):
        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        utils.update_momentum(self.student_backbone, self.teacher_backbone, m=momentum)
        utils.update_momentum(self.student_head, self.teacher_head, m=momentum)
        views = [view.to(self.device) for view in batch[0]]
        teacher_out = [self.forward_teacher(view) for view in views[:2]]
        student_out = [self.forward(view) for view in views]
        return self.criterion(teacher_out, student_out, epoch=self.current_epoch)

    def on_after_backward(self):
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def on_before_optimizer_step(self, optimizer, *args):
        weight_decay = cosine_schedule(self.trainer.global_step, EPOCHS * STEPS, 0.04, 0.4)
        update_param_groups(optimizer, updates=[{"name": "dino", "weight_decay": weight_decay}])

    def configure_optimizers(self):
        params, params_no_weight_decay = utils.get_weight_decay_parameters([self.student_backbone, self.student_head])
        optimizer = torch.optim.AdamW(
            [
                {"name": "dino", "params": params},
                {"name": "dino_no_weight_decay", "params": params_no_weight_decay, "weight_decay": 0.0},
            ],
            lr=1e-3,
        )
        scheduler = CosineWarmupScheduler(optimizer, warmup_epochs=2, max_epochs=EPOCHS * STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class MAE(pl.LightningModule):
    """A ViT of timm whose patches are masked at random, with fixed position embeddings and a mask token."""

    transform = MAETransform(input_size=32)

    def __init__(self):
        super().__init__()
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=0)
        self.patch_size = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder_embed = torch.nn.Linear(64, 64)
        self.decoder = MaskedVisionTransformerDecoderTIMM(vit.patch_embed.num_patches, embed_dim=64, depth=1, num_heads=4)
        self.predictor = torch.nn.Linear(64, 3 * self.patch_size**2)
        self.criterion = torch.nn.MSELoss()

    def training_step(self, batch, batch_idx):
        images = batch[0][0]
        idx_keep, idx_mask = utils.random_token_mask((len(images), self.sequence_length), mask_ratio=0.75, device=images.device)
        x_encoded = self.backbone.encode(images=images, idx_keep=idx_keep)
        x_masked = utils.repeat_token(self.decoder.mask_token, (len(images), self.sequence_length))
        x_masked = utils.set_at_index(x_masked, idx_keep, self.decoder_embed(x_encoded))
        x_pred = self.predictor(utils.get_at_index(self.decoder(x_masked), idx_mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        return self.criterion(x_pred, target)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1.5e-3)
        return {"optimizer": optimizer, "lr_scheduler": CosineWarmupScheduler(optimizer, warmup_epochs=1, max_epochs=EPOCHS)}


def fit(kind, *callbacks, epochs=EPOCHS, ckpt_path=None):
    pl.seed_everything(0, verbose=False)
    model = kind()
    images = torchvision.datasets.FakeData(BATCH * STEPS, (3, 32, 32), num_classes=2)
    dataset = LightlyDataset.from_torch_dataset(images, transform=kind.transform)
    batches = DataLoader([dataset[i] for i in range(len(dataset))], batch_size=BATCH)  # views drawn once: a resumed run has the same
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[per_step_randomness(pl), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches, ckpt_path=ckpt_path)
    return model, trainer


def swap(partition):
    return [AdamMiniCallback(partition)] if partition else []


@functools.cache
def straight(kind, partition):
    """The unbroken run, without our callback if ``partition`` is None."""
    callbacks = swap(partition)
    return *fit(kind, *callbacks), *callbacks


@pytest.mark.parametrize("kind", [DINO, MAE])
def test_report_and_halved_state(kind):
    model, trainer, callback = straight(kind, "auto")
    assert_reported(callback, model, *trainer.optimizers)
    assert_halved(callback, trainer.optimizers, straight(kind, None)[1].optimizers)


@pytest.mark.parametrize("kind", [DINO, MAE])
def test_adam_is_the_plain_run(kind):
    """With lightly's scheduler and, in DINO's case, a weight decay that the module sets in each step."""
    plain, plain_trainer = straight(kind, None)
    ours, trainer, _ = straight(kind, "adam")
    assert_same(state(plain), state(ours))
    for group, expected in zip(trainer.optimizers[0].param_groups, plain_trainer.optimizers[0].param_groups, strict=True):
        assert (group["lr"], group["weight_decay"]) == (expected["lr"], expected["weight_decay"])
    assert_differ(state(plain), state(straight(kind, "auto")[0]))


@pytest.mark.parametrize("partition", [None, "auto"])
@pytest.mark.parametrize("kind", [DINO, MAE])
def test_resume(kind, partition, tmp_path):
    fit(kind, *swap(partition), epochs=1)[1].save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(kind, *swap(partition), ckpt_path=tmp_path / "half.ckpt")
    assert_same(state(straight(kind, partition)[0]), state(resumed))
