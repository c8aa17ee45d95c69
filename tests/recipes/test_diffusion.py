import io
import math
import re
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from lightning_adam_mini import AdamMiniCallback, inspect_model
from recipes.__main__ import main
from recipes.diffusion import CelebAImages, DigitImages, ImageFiles, NoisePredictor, SampleGrids
from recipes.diffusion.digits import digit_images
from recipes.diffusion.distance import DigitFeatures, feature_distance
from recipes.diffusion.grids import image_grid
from recipes.diffusion.model import fixed_draw
from recipes.vision import DigitsData, ImageClassifier

from .conftest import CONFIGS, NARROW, QUIET, SMALL_UNET

DIGITS = str(CONFIGS / "ddpm_digits.yaml")
CLASSIFIER = str(CONFIGS / "resnet18_digits.yaml")
SMALL = {"channels": (8, 16), "timesteps": 20}
SMALL_ARGS = ["--model.channels", "[8, 16]", "--model.timesteps", "20", "--model.lr", "0.05"]
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]


def quiet_trainer(folder, *callbacks, logger=False, **options):
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        log_every_n_steps=1,
        **options,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a small DDPM after three steps, with averaged weights that lag behind."""
    folder = tmp_path_factory.mktemp("ddpm")
    assert main(["fit", "--config", DIGITS, *QUIET, *SMALL_ARGS, *SHORT, "--trainer.logger.init_args.save_dir", str(folder)]) == 0
    return folder / "ddpm_digits" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A checkpoint of a small digit classifier."""
    folder = tmp_path_factory.mktemp("resnet")
    assert main(["fit", "--config", CLASSIFIER, *QUIET, *NARROW, *SHORT, "--trainer.logger.init_args.save_dir", str(folder)]) == 0
    return folder / "resnet18_digits" / "version_0" / "checkpoints" / "last.ckpt"


# the model


def test_it_is_a_diffusion_unet_and_half_of_the_state_is_saved(capsys):
    assert inspect_model(NoisePredictor()).architecture == "diffusion_unet"
    args = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.limit_test_batches", "1"]
    assert main(["fit", "--config", DIGITS, *QUIET, *args]) == 0
    saved = re.search(r"([\d.]+) % saved", capsys.readouterr().out)
    assert saved is not None
    assert float(saved[1]) >= 48.5  # rows, columns and vectors: 4,900 numbers for 164,000 parameters


def test_a_step_mixes_noise_as_ddpm_does():
    model = NoisePredictor(**SMALL, beta_schedule="linear")
    kept = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 20), dim=0)
    images, noise, timesteps = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([0, 7, 19])
    share = kept[timesteps].view(-1, 1, 1, 1)
    noisy = share.sqrt() * images + (1.0 - share).sqrt() * noise
    expected = (model(noisy, timesteps) - noise).square().mean()
    torch.testing.assert_close(model._loss(images, timesteps, noise), expected)


def test_validation_is_the_same_whatever_the_seed(tmp_path):
    model, trainer = NoisePredictor(**SMALL, eval_draws=2), quiet_trainer(tmp_path)
    measured = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        measured.append(trainer.validate(model, DigitImages(eval_batch_size=100), verbose=False)[0]["val/loss"])
    assert measured[0] == measured[1]
    other = trainer.validate(NoisePredictor(**SMALL, eval_draws=1), DigitImages(eval_batch_size=100), verbose=False)[0]["val/loss"]
    assert other != measured[0]


def test_a_fixed_draw_spreads_the_timesteps_evenly_and_gives_each_batch_its_own_noise():
    timesteps, noise = fixed_draw(torch.Size([1000, 1, 2, 2]), 1000, seed=0)
    assert timesteps.sort().values.tolist() == list(range(1000))
    assert timesteps.tolist() != list(range(1000))
    assert abs(float(noise.mean())) < 0.1
    assert not torch.equal(noise, fixed_draw(noise.shape, 1000, seed=1)[1])


def test_training_draws_new_noise_each_epoch(tmp_path):
    """The same noise again and again would be learned by heart."""

    class Draws(Callback):
        def __init__(self):
            self.first = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.first.append(torch.get_rng_state())

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.first[-1] = torch.randn(4, generator=torch.Generator().set_state(torch.get_rng_state()))

    draws = Draws()
    pl.seed_everything(0)
    quiet_trainer(tmp_path, draws, max_epochs=3, limit_train_batches=1, limit_val_batches=0).fit(NoisePredictor(**SMALL), DigitImages())
    assert len({tuple(draw.tolist()) for draw in draws.first}) == 3


def test_samples_are_deterministic_and_leave_the_random_state_alone():
    model = NoisePredictor(**SMALL, dropout=0.5).train()
    before = torch.get_rng_state()
    first, again, other = (model.sample(3, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.net.training
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 1, 8, 8)
    assert first.abs().max() <= 1.0


@pytest.mark.parametrize("steps", [7, 20])
def test_sampling_with_the_true_noise_finds_the_image(steps):
    """The best predictor for a single image says which noise it would be hidden in; then every path leads to the image."""
    model = NoisePredictor(**SMALL, beta_schedule="squaredcos_cap_v2")
    image = digit_images()["train"][:1]

    class Oracle(torch.nn.Module):
        def forward(self, noisy, timesteps):
            share = model.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            return type("Output", (), {"sample": (noisy - share.sqrt() * image) / (1.0 - share).sqrt()})

    model.net = Oracle()
    torch.testing.assert_close(model.sample(2, steps=steps), image.expand(2, -1, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 8, 8, 8, 8)}, "do not fit image_size 8"),
        ({"channels": ()}, "do not fit image_size 8"),
        ({"channels": (8, 12)}, "norm_groups 8 does not divide 12"),
        ({"channels": (8, 16), "attention_levels": (2,)}, r"attention_levels names \[2\]"),
        ({"channels": (8, 16), "attention_head_dim": 12}, "attention_head_dim 12 does not divide the 16 channels of level 1"),
        ({"eval_draws": 0}, "must be at least 1, not 0 and 1000"),
    ],
)
def test_a_network_that_cannot_be_is_explained(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        NoisePredictor(**options)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.image_size", "16"], "The model has image_size 16 but the data have 8; set --model.image_size 8."),
        (["--model.in_channels", "3"], "The model has in_channels 3 but the data have 1; set --model.in_channels 1."),
        (["--data", "DigitsData"], "NoisePredictor learns from images without labels, but DigitsData gives images with labels"),
        (
            ["--data", "CelebAImages", "--data.root", "nowhere", "--model.image_size", "64", "--model.in_channels", "3"],
            "No complete CelebA",
        ),
        (["--data", "ImageFiles", "--data.root", "nowhere"], "looked for the folder nowhere."),
        (["--model.norm_groups", "5"], "norm_groups 5 does not divide 16"),
    ],
)
def test_data_that_do_not_fit_are_one_clear_error(args, message, capsys):
    assert main(["fit", "--config", DIGITS, *QUIET, *args]) == 1
    assert message in capsys.readouterr().err


def test_prediction_is_refused_with_the_command_to_use(capsys):
    assert main(["predict", "--config", DIGITS, *QUIET, *SMALL_ARGS]) == 1
    assert "generate some with `python -m recipes sample`" in capsys.readouterr().err


# averaged weights, resuming, grids


class StopAfterFirstEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def averaged_run(folder, *callbacks, ckpt_path=None, logger=False, validate_every=1):
    pl.seed_everything(3)
    keep = ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    model = NoisePredictor(**SMALL, dropout=0.1, lr=0.05)
    trainer = quiet_trainer(
        folder,
        AdamMiniCallback(),
        EMAWeightAveraging(decay=0.9),
        keep,
        *callbacks,
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=1,
        check_val_every_n_epoch=validate_every,
        logger=logger,
    )
    trainer.fit(model, DigitImages(), ckpt_path=ckpt_path)
    return model, torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("validate_every", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_and_grids_do_not_disturb_it(validate_every, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="log")
    run = partial(averaged_run, validate_every=validate_every)
    _, whole = run(tmp_path / "whole", SampleGrids(every_n_epochs=1, count=2, steps=2), logger=logger)
    _, first = run(tmp_path / "parts", StopAfterFirstEpoch())
    assert first["global_step"] == 3
    _, resumed = run(tmp_path / "parts", ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert resumed["global_step"] == whole["global_step"] == 6

    for kind in ("state_dict", "current_model_state"):  # the averaged weights, and those that are trained
        assert all(torch.equal(resumed[kind][name], value) for name, value in whole[kind].items())
        assert any(not torch.equal(first[kind][name], value) for name, value in whole[kind].items())
    assert any(not torch.equal(whole["state_dict"][name], value) for name, value in whole["current_model_state"].items())
    assert torch.equal(resumed["averaging_state"]["n_averaged"], whole["averaging_state"]["n_averaged"])
    ours, theirs = (run["optimizer_states"][0]["state"] for run in (resumed, whole))
    assert all(torch.equal(ours[key][name], value) for key in theirs for name, value in theirs[key].items() if torch.is_tensor(value))


def test_fit_and_test_measure_the_averaged_weights(tmp_path, capsys):
    args = ["--config", DIGITS, *QUIET, *SMALL_ARGS]
    assert main(["fit", *args, *SHORT, "--trainer.log_every_n_steps", "1"]) == 0
    fitted = re.search(r"test loss: ([\d.]+)", capsys.readouterr().out)
    stored = tmp_path / "runs/ddpm_digits/version_0/checkpoints/last.ckpt"
    assert main(["test", *args, "--ckpt_path", str(stored)]) == 0
    tested = re.search(r"test/loss\W+([\d.]+)", capsys.readouterr().out)
    assert fitted is not None
    assert tested is not None
    checkpoint = torch.load(stored, weights_only=True)
    losses = {}
    for kind in ("state_dict", "current_model_state"):
        model = NoisePredictor(**{name: value for name, value in checkpoint["hyper_parameters"].items() if not name.startswith("_")})
        model.load_state_dict(checkpoint[kind])
        losses[kind] = quiet_trainer(tmp_path).test(model, DigitImages(), verbose=False)[0]["test/loss"]
    assert float(fitted[1]) == pytest.approx(losses["state_dict"], abs=1e-4)
    assert float(tested[1]) == pytest.approx(losses["state_dict"], abs=1e-4)
    assert losses["current_model_state"] != pytest.approx(losses["state_dict"], abs=1e-3)


def test_grids_of_the_averaged_weights_go_to_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="log")
    model, stored = averaged_run(tmp_path, SampleGrids(every_n_epochs=2, count=5, steps=4, seed=1), logger=logger)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["samples"]
    (event,) = events.Images("samples")
    assert event.step == 6
    shown = to_tensor(Image.open(io.BytesIO(event.encoded_image_string)))

    model.load_state_dict(stored["state_dict"])
    torch.testing.assert_close(shown, image_grid(model.sample(5, steps=4, seed=1)), atol=1 / 255, rtol=0)
    model.load_state_dict(stored["current_model_state"])
    assert (shown - image_grid(model.sample(5, steps=4, seed=1))).abs().max() > 1 / 255


@pytest.mark.parametrize("logger", [False, "csv"])
def test_grids_are_silent_without_tensorboard(logger, tmp_path):
    averaged_run(tmp_path, SampleGrids(every_n_epochs=1), logger=CSVLogger(tmp_path) if logger else False)
    assert not list(tmp_path.rglob("*.png"))


def test_grids_are_for_models_that_generate(tmp_path):
    with pytest.raises(MisconfigurationException, match="not ImageClassifier; remove it"):
        quiet_trainer(tmp_path, SampleGrids()).fit(ImageClassifier(model_args={"channels": [4, 8, 8, 8]}), DigitsData())
    with pytest.raises(MisconfigurationException, match="at least 1, not 0, 16 and 100"):
        SampleGrids(every_n_epochs=0)


# data


def test_digits_to_generate_are_the_classifiers_in_another_scale():
    ours, theirs = DigitImages(), DigitsData()
    for data in (ours, theirs):
        data.setup("fit")
    for split in ("train", "val", "test"):
        images, standardised = ours._sets[split], theirs._sets[split].tensors[0]
        assert images.min() == -1.0
        assert images.max() == 1.0
        for both in (images, standardised):
            both.sub_(both.min()).div_(both.max())
        torch.testing.assert_close(images, standardised, atol=1e-5, rtol=0)


def write_images(folder, count, size=(30, 20)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((*reversed(size), 3), number, dtype=np.uint8)).save(folder / f"{number:03d}.png")


def shades(data, split):
    """Return the grey value of each image, by which the tests tell files apart."""
    return [round((float(image.mean()) + 1.0) * 127.5) for image in data._sets[split]]


def test_a_flat_folder_is_split_by_the_order_of_its_files(tmp_path):
    write_images(tmp_path / "flat", 41)
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    data = ImageFiles(str(tmp_path / "flat"), image_size=16, num_workers=0, batch_size=4)
    data.setup("fit")
    assert shades(data, "test") == [0, 20, 40]
    assert shades(data, "val") == [1, 21]
    assert shades(data, "train") == [number for number in range(41) if number % 20 > 1]
    assert next(iter(data.train_dataloader())).shape == (4, 3, 16, 16)


def test_a_tree_is_read_in_grey_at_any_depth(tmp_path):
    write_images(tmp_path / "tree" / "a", 2)
    write_images(tmp_path / "tree" / "b" / "c", 2)
    data = ImageFiles(str(tmp_path / "tree"), image_size=8, channels=1, num_workers=0)
    data.setup("fit")
    assert [len(data._sets[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert next(iter(data.val_dataloader())).shape == (1, 1, 8, 8)


def test_only_training_images_are_mirrored(tmp_path):
    write_images(tmp_path / "half", 3)
    for file in (tmp_path / "half").iterdir():
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[:, 4:] = 255
        Image.fromarray(pixels).save(file)
    data = ImageFiles(str(tmp_path / "half"), image_size=8, num_workers=0)
    data.setup("fit")
    for split, orientations in (("train", {-1.0, 1.0}), ("val", {-1.0}), ("test", {-1.0})):
        assert {float(data._sets[split][0][0, 0, 0]) for _ in range(30)} == orientations


def test_a_folder_without_enough_images_is_named(tmp_path):
    write_images(tmp_path / "few", 1)
    with pytest.raises(MisconfigurationException, match=r"few holds 1 image file \(.*need one each"):
        ImageFiles(str(tmp_path / "few")).setup("fit")
    with pytest.raises(MisconfigurationException, match="looked for the folder .*nowhere"):
        ImageFiles(str(tmp_path / "nowhere")).setup("fit")


def test_celeba_in_its_own_splits(celeba):
    data = CelebAImages(str(celeba), image_size=64, num_workers=0, batch_size=4)
    data.setup("fit")
    assert {split: [file.name for file in images.files] for split, images in data._sets.items()} == {
        "train": [f"{number:06d}.jpg" for number in range(1, 9)],
        "val": ["000009.jpg", "000010.jpg"],
        "test": ["000011.jpg", "000012.jpg"],
    }
    batch = next(iter(data.train_dataloader()))
    assert batch.shape == (4, 3, 64, 64)
    assert -1.0 <= batch.min() < 0.0 < batch.max() <= 1.0


def test_a_folder_of_celebas_files_alone(celeba, capsys):
    """What the header of the YAML says."""
    data = ["--data", "ImageFiles", "--data.root", str(celeba / "celeba" / "img_align_celeba"), "--data.num_workers", "0"]
    assert main(["fit", "--config", str(CONFIGS / "ddpm_celeba64.yaml"), *QUIET, *SMALL_UNET, *data, "--trainer.max_steps", "1"]) == 0
    assert "test loss: " in capsys.readouterr().out


def test_an_incomplete_celeba_says_what_was_looked_for(celeba):
    (celeba / "celeba" / "list_eval_partition.txt").unlink()
    with pytest.raises(MisconfigurationException, match=r"list_eval_partition.txt in .*celeba.*--data ImageFiles"):
        CelebAImages(str(celeba)).setup("fit")


@pytest.mark.parametrize("kind", ["unreadable", "missing"])
def test_a_bad_face_is_named(celeba, kind):
    face = celeba / "celeba" / "img_align_celeba" / "000010.jpg"
    face.write_bytes(b"not an image") if kind == "unreadable" else face.unlink()
    data = CelebAImages(str(celeba), num_workers=0)
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match=r"000010\.jpg cannot be read as an image"):
        list(data.val_dataloader())


# python -m recipes sample


def test_sample_writes_a_grid_of_the_averaged_weights(checkpoint, tmp_path, capsys):
    command = ["sample", "--ckpt", str(checkpoint), "--count", "5", "--steps", "4", "--seed", "1"]
    assert main([*command, "--out", "pictures/grid.png"]) == 0
    assert "pictures/grid.png: 5 images in 4 steps, seed 1, averaged weights of" in capsys.readouterr().out
    with Image.open(tmp_path / "pictures" / "grid.png") as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)  # 3 x 2 images, 8 pixels enlarged to 32, with borders of 2
        shown = to_tensor(image)

    stored = torch.load(checkpoint, weights_only=True)
    arguments = {name: value for name, value in stored["hyper_parameters"].items() if not name.startswith("_")}
    grids = {}
    for kind in ("state_dict", "current_model_state"):
        model = NoisePredictor(**arguments)
        model.load_state_dict(stored[kind])
        grids[kind] = image_grid(model.sample(5, steps=4, seed=1))
    torch.testing.assert_close(shown, grids["state_dict"], atol=1 / 255, rtol=0)
    assert (shown - grids["current_model_state"]).abs().max() > 1 / 255

    assert main([*command, "--out", "again.png"]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "pictures" / "grid.png").read_bytes()


def test_sample_measures_the_feature_distance(checkpoint, classifier, capsys):
    assert main(["sample", "--ckpt", str(checkpoint), "--count", "4", "--steps", "2", "--distance", str(classifier)]) == 0
    found = re.search(
        r"feature distance of 364 generated digits to the test digits: (\S+) \(of the validation digits: (\S+)\)", capsys.readouterr().out
    )
    assert found is not None
    assert float(found[1]) > float(found[2]) > 0.0  # an untrained model is further from digits than digits are


def test_feature_distance_tells_digits_from_noise():
    torch.manual_seed(0)
    digits = digit_images()
    features = DigitFeatures(ImageClassifier(in_channels=1, small_images=True, model_args={"channels": [4, 8, 8, 8]}).eval())
    same = feature_distance(features, digits["test"], digits["test"].flip(0))
    other = feature_distance(features, digits["test"], digits["val"])
    noise = feature_distance(features, digits["test"], torch.rand(364, 1, 8, 8) * 2.0 - 1.0)
    assert abs(same) < 1e-3 * noise
    assert other < 0.2 * noise
    assert not math.isnan(other)


def test_features_are_what_the_last_layer_reads():
    model = ImageClassifier(in_channels=1, small_images=True, model_args={"channels": [4, 8, 8, 8]}).eval()
    features = DigitFeatures(model)
    ours, theirs = digit_images()["test"][:5], DigitsData()
    theirs.setup("test")
    logits = model.net.get_classifier()(features(ours))
    torch.testing.assert_close(logits, model(theirs._sets["test"].tensors[0][:5]), atol=1e-4, rtol=1e-4)


def test_sample_explains_its_mistakes(checkpoint, classifier, tmp_path, capsys):
    (tmp_path / "broken.ckpt").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.ckpt")
    colour = NoisePredictor(image_size=16, in_channels=3, **SMALL)
    pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, max_steps=1).fit(
        colour, DataLoader(torch.zeros(2, 3, 16, 16))
    )
    colour.trainer.save_checkpoint(tmp_path / "colour.ckpt")
    make_ddpm, make_resnet = (
        f"make one with `python -m recipes fit --config configs/{name}.yaml`" for name in ("ddpm_digits", "resnet18_digits")
    )
    cases = [
        (["--ckpt", "nowhere.ckpt"], f"There is no checkpoint nowhere.ckpt; {make_ddpm}"),
        (["--ckpt", "broken.ckpt"], "broken.ckpt cannot be read as a checkpoint, because"),
        (["--ckpt", "foreign.ckpt"], "foreign.ckpt is a checkpoint of another model, not of this version's NoisePredictor"),
        (["--ckpt", str(classifier)], "is a checkpoint of ImageClassifier, not of this version's NoisePredictor"),
        (["--ckpt", str(checkpoint), "--steps", "21"], "The model has 20 timesteps, so it cannot sample in 21 steps."),
        (["--ckpt", str(checkpoint), "--distance", "nowhere.ckpt"], f"There is no checkpoint nowhere.ckpt; {make_resnet}"),
        (
            ["--ckpt", str(checkpoint), "--distance", str(checkpoint)],
            "is a checkpoint of NoisePredictor, not of this version's ImageClassifier",
        ),
        (["--ckpt", "colour.ckpt", "--distance", str(classifier)], "the model generates images of 3x16x16; leave --distance out"),
        (["--ckpt", str(checkpoint), "--steps", "2", "--out", "broken.ckpt/grid.png"], "broken.ckpt/grid.png cannot be written"),
    ]
    for args, message in cases:
        assert main(["sample", *args]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "samples.png").exists()
    for args, message in ((["--count", "0"], "at least 1, not 0"), (["--out", "grid.jpg"], "must end in .png")):
        with pytest.raises(SystemExit, match="2"):
            main(["sample", "--ckpt", str(checkpoint), *args])
        assert message in capsys.readouterr().err
