"""What the charts show, in words: for TensorBoard's descriptions and its page of texts, and for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_adam_mini.callbacks.distribution import is_lightnings
from lightning_adam_mini.callbacks.loggers import loggers_of, summary_writer
from lightning_adam_mini.callbacks.summary import PREFIX, RATIO
from lightning_adam_mini.callbacks.updates import PREFIX as UPDATE

if TYPE_CHECKING:
    import lightning.pytorch as pl

_MEANINGS = {
    RATIO: "Effective learning rate over the learning rate of the parameter's group: `1 / (sqrt(v) + eps)`, about one over the size of a"
    " gradient. It is what the blocks do, whatever the scheduler does. It falls where gradients grow, and rises where they shrink; a head"
    " or layer far above the others gets small gradients.",
    PREFIX: "Effective learning rate: `lr / (sqrt(v) + eps)`, which the momentum is multiplied with. A scheduler moves all of them alike.",
    UPDATE: "Last update of a matrix whose momentum is orthogonalised: `rms`, its root mean square without weight decay, and `ratio`, that"
    " over the root mean square of the weights.",
}
_LINES = {
    "row": " Of factored second moments: the mean over each row (output neuron, channel) taken for the second moment.",
    "column": " Of factored second moments: the mean over each column (input) taken for the second moment.",
}

LEGEND = "\n\n".join(
    [
        *(f"**{prefix}** {meaning}" for prefix, meaning in _MEANINGS.items()),
        "Of many blocks there are min, median and max. `vectors` are biases, norms and the like, by kind. The page *Custom Scalars* has a"
        " chart for each layer type, without min and max.",
    ]
)
"""How to read the charts, in Markdown."""


def describe(tag: str) -> str:
    """What one curve shows; nothing for tags of others.

    Example:
        >>> describe("weight_lr.mlp_up/fc.weight/row/median")[:80]
        'Effective learning rate: `lr / (sqrt(v) + eps)`, which the momentum is multiplie'
    """
    found = next((meaning for prefix, meaning in _MEANINGS.items() if tag.startswith(f"{prefix}.")), "")
    return found + "".join(text for line, text in _LINES.items() if found and f"/{line}/" in tag)


def where_it_goes(trainer: pl.Trainer) -> str:
    """Which loggers get the curves and what each can show of them, in one line."""
    if getattr(trainer, "fast_dev_run", False):
        return "effective learning rates are not logged in a fast development run"
    places = [_place(logger) for logger in loggers_of(trainer)]
    if not places:
        return (
            "effective learning rates are not logged, because the trainer has no logger. Give it one for charts, such as"
            " TensorBoardLogger, or write monitoring=False"
        )
    return f"effective learning rates ({PREFIX}... and, over the learning rate, {RATIO}...) go to {'; '.join(places)}"


def _place(logger: Any) -> str:
    kind, folder = type(logger).__name__, getattr(logger, "log_dir", None)
    if summary_writer(logger) is not None:
        return f"TensorBoard, pages Time Series and Custom Scalars: tensorboard --logdir {folder}"
    if is_lightnings(logger, "CSVLogger"):
        return f"the columns of {folder}/metrics.csv (charts are for TensorBoard: add a TensorBoardLogger)"
    return kind


def why_no_figures(trainer: pl.Trainer) -> str | None:
    """Why no logger of the trainer takes figures, with the remedy; None if one does."""
    if getattr(trainer, "fast_dev_run", False):
        return "a fast development run logs nothing. Leave fast_dev_run out"
    loggers = loggers_of(trainer)
    if not loggers:
        return "the trainer has no logger. Give it a TensorBoardLogger"
    if any(summary_writer(logger) is not None for logger in loggers):
        return None
    if any(is_lightnings(logger, "TensorBoardLogger") for logger in loggers):
        return "TensorBoardLogger writes through tensorboardX here. Run 'pip install tensorboard'"
    kinds = ", ".join(type(logger).__name__ for logger in loggers)
    return f"figures go to TensorBoard, and the trainer logs to {kinds}. Give it a TensorBoardLogger (it needs tensorboard)"
