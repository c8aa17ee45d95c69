"""timm models, and the ResNet stem that small images need."""

from difflib import get_close_matches
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn


def create_backbone(
    name: str, num_classes: int, in_channels: int, small_images: bool, pretrained: bool, model_args: dict[str, Any]
) -> nn.Module:
    """Create a timm model.

    Args:
        name: Name of the model in timm.
        num_classes: Size of the output layer.
        in_channels: Channels of an image.
        small_images: Whether to give a ResNet the stem for small images.
        pretrained: Whether to load timm's pretrained weights.
        model_args: Further keyword arguments of ``timm.create_model``.
    """
    import timm  # seconds to import, so that --help does without

    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5)
        raise MisconfigurationException(
            f"timm has no model called {name!r}; near matches: {', '.join(near) or 'none'}. `timm.list_models()` lists them all."
        )
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **model_args)
    except TypeError as error:
        raise MisconfigurationException(f"timm's {name} does not take --model.model_args {model_args}: {error}") from error
    if small_images:
        use_small_stem(net, name)
    return net


def use_small_stem(net: nn.Module, name: str) -> None:
    """Replace a ResNet's 7x7 stem of stride 2 and its pooling by one 3x3 convolution of stride 1, as is usual for CIFAR.

    Args:
        net: The model, changed in place.
        name: Its name, for the error where it has no such stem.
    """
    stem = getattr(net, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(net, "maxpool"):
        raise MisconfigurationException(
            f"small_images replaces the `conv1` and `maxpool` of a ResNet, which timm's {name} does not have. "
            "Set --model.small_images false, and give a transformer its size by --model.model_args '{img_size: 32, patch_size: 4}'."
        )
    small = nn.Conv2d(stem.in_channels, stem.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = small
    net.maxpool = nn.Identity()
