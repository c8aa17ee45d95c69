import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from sklearn.datasets import load_digits

from recipes.vision import CIFARData, DigitsData, ImageClassifier, ImageFolderData
from recipes.vision.digits import digit_splits, jitter


@pytest.fixture(scope="module")
def digits():
    data = DigitsData()
    data.setup("fit")
    return {name: subset.tensors for name, subset in data._sets.items()}


def test_digit_splits_are_disjoint_complete_and_stratified():
    labels = torch.as_tensor(load_digits(return_X_y=True)[1])
    splits = digit_splits(labels)
    assert sorted(torch.cat(list(splits.values())).tolist()) == list(range(1797))
    for label in range(10):
        counts = {name: int((labels[indices] == label).sum()) for name, indices in splits.items()}
        total = sum(counts.values())
        assert all(abs(counts[name] - share * total) <= 2 for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)))


def test_digit_splits_do_not_depend_on_the_seed(digits):
    torch.manual_seed(123)
    again = DigitsData(batch_size=7)
    again.setup("test")
    for name, subset in again._sets.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(subset.tensors, digits[name], strict=True))


def test_no_test_image_is_among_the_training_images(digits):
    seen = {tuple(image.flatten().tolist()) for image in torch.cat([digits["train"][0], digits["val"][0]])}
    assert not any(tuple(image.flatten().tolist()) in seen for image in digits["test"][0])


def test_only_training_pixels_set_the_scale(digits):
    assert digits["train"][0].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert digits["train"][0].std().item() == pytest.approx(1.0, abs=1e-5)
    assert digits["test"][0].mean().item() != pytest.approx(0.0, abs=1e-5)


def test_digits_can_be_enlarged_and_coloured():
    data = DigitsData(image_size=32, channels=3, batch_size=4)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert labels.shape == (4,)


def test_jitter_moves_little_and_keeps_black_black(digits):
    images = digits["train"][0][:64]
    moved = jitter(images)
    assert moved.shape == images.shape
    assert moved.amin() >= images.amin() - 1e-5
    similarity = torch.cosine_similarity((moved - images.amin()).flatten(1), (images - images.amin()).flatten(1))
    assert similarity.min() > 0.6
    assert not torch.equal(jitter(images), moved)
    torch.testing.assert_close(jitter(images, degrees=0, scale=0, shift=0), images, atol=1e-5, rtol=0)


def test_small_stem_keeps_the_size_of_the_image():
    net = ImageClassifier(in_channels=1, small_images=True, model_args={"channels": [4, 8, 8, 8]}).net
    assert net.conv1(torch.zeros(2, 1, 8, 8)).shape == (2, 64, 8, 8)
    assert isinstance(net.maxpool, torch.nn.Identity)


def test_imagenet_model_has_torchvisions_parameters():
    assert sum(p.numel() for p in ImageClassifier(num_classes=1000).net.parameters()) == 11_689_512


def test_vit_by_name():
    args = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 3}
    model = ImageClassifier("vit_tiny_patch16_224", in_channels=1, model_args=args, top5=True)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_image_tree(image_tree):
    data = ImageFolderData(str(image_tree), batch_size=4, image_size=32, resize=36, num_workers=0)
    data.setup("fit")
    assert data.num_classes == 2
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert torch.cat([labels for _, labels in data.val_dataloader()]).tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.test_dataloader().dataset) == 6


def test_an_image_tree_can_validate_on_training_images(image_tree):
    data = ImageFolderData(str(image_tree), val_folds=3, image_size=32, resize=32, padding=4, num_workers=0)
    data.setup("fit")
    train, val = data.train_dataloader().dataset, data.val_dataloader().dataset
    assert [train.dataset.targets[index] for index in train.indices] == [0, 0, 1, 1]
    assert [val.dataset.targets[index] for index in val.indices] == [0, 1]
    assert not set(train.indices) & set(val.indices)
    assert train[0][0].shape == (3, 32, 32)
    assert torch.equal(val[0][0], val[0][0])  # not augmented
    assert not torch.equal(train[0][0], train[0][0])


def test_an_image_tree_can_be_cut_short(image_tree):
    data = ImageFolderData(str(image_tree), images_per_class=2, num_workers=0)
    data.setup("fit")
    assert data.train_dataloader().dataset.indices == [0, 1, 3, 4]
    assert len(data.val_dataloader().dataset) == 6


@pytest.mark.parametrize(
    ("arguments", "found"), [({"val_folds": 1}, "val_folds value: 1"), ({"val_folds": 5, "images_per_class": 4}, "least 5")]
)
def test_a_split_that_leaves_nothing_is_refused(arguments, found):
    with pytest.raises(MisconfigurationException, match=found):
        ImageFolderData(**arguments)


def test_a_class_that_only_one_split_has_is_named(image_tree):
    (image_tree / "val" / "n01443537").rename(image_tree / "val" / "n09999999")
    with pytest.raises(MisconfigurationException, match="differ in n01443537, n09999999"):
        ImageFolderData(str(image_tree)).setup("fit")


def test_an_empty_tree_is_named(tmp_path):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(MisconfigurationException, match="empty/train is not a tree of images"):
        ImageFolderData(str(tmp_path / "empty")).setup("fit")


def test_an_unreadable_image_is_named(image_tree):
    (image_tree / "val" / "n01440764" / "n01440764_1.JPEG").write_bytes(b"not an image")
    data = ImageFolderData(str(image_tree), num_workers=0)
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match=r"n01440764_1\.JPEG cannot be read as an image"):
        list(data.val_dataloader())


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_validates_on_one_training_image_in_ten(cifar, name, classes):
    data = CIFARData(str(cifar), name, num_workers=0, batch_size=4)
    data.setup("fit")
    assert data.num_classes == classes
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert sorted(labels.tolist()) == sorted(list(range(classes)) * 2)
    assert len(data.train_dataloader().dataset) == 18 * classes
    assert len(data.test_dataloader().dataset) == 4 * classes
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)
    assert not set(data._sets["train"].indices) & set(data._sets["val"].indices)


def test_missing_cifar_says_what_was_looked_for(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"looked for the folder .*cifar-10-batches-py.*--data.download true"):
        CIFARData(str(tmp_path / "nowhere")).setup("fit")
