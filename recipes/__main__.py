"""``python -m recipes``: train and test the recipes, and sample from them."""

import sys
import traceback
import warnings
from collections.abc import Sequence

USAGE = """\
usage: python -m recipes COMMAND ...

  fit        train a recipe, test it and say what was reached: fit --config configs/resnet18_digits.yaml
  validate   measure a checkpoint on the validation set
  test       measure a checkpoint on the test set
  predict    predict the test set with a checkpoint
  sample     generate images with a checkpoint of a diffusion recipe: sample --ckpt PATH --out samples.png

`python -m recipes COMMAND --help` explains each. What compares or measures is in `python -m experiments`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The command line, without the program's name; ``sys.argv`` by default.
    """
    command, *args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch, which no user can change
    if command == "sample":
        from recipes.diffusion.command import main as sample

        return sample(args)
    if command not in ("fit", "validate", "test", "predict"):
        sys.stderr.write(f"{USAGE}\nerror: there is no command {command!r}\n")
        return 2

    if not args:
        sys.stderr.write(f"error: {command} needs a configuration, such as --config configs/resnet18_digits.yaml. `--help` tells more.\n")
        return 2
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from recipes.cli import RecipeCLI

    try:
        RecipeCLI([command, *args])
    except (MisconfigurationException, ValueError) as error:
        if not is_users_mistake(error):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def is_users_mistake(error: Exception) -> bool:
    """Return whether an error explains itself: Lightning's of a configuration, or a ValueError of our package or of torch's optimizers.

    Args:
        error: The error as it was caught.
    """
    if not isinstance(error, ValueError):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(("lightning_adam_mini.", "torch.optim."))


if __name__ == "__main__":
    sys.exit(main())
