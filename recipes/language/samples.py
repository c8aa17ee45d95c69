"""Text that a model writes while it trains."""

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from recipes.language.model import LanguageModel
from recipes.language.token_data import TokenData


class SampleText(Callback):
    """Log a text that the model writes at the end of each validation, after the first tokens of the validation text.

    It goes to TensorBoard; other loggers get nothing. The draws are the same each time, and training's random state is not touched.

    Args:
        count: Tokens that the model adds.
        prompt: Tokens that it goes on from.
        temperature: What the logits are divided by before a token is drawn.
        seed: Seed of the draws.
    """

    def __init__(self, count: int = 200, prompt: int = 32, temperature: float = 0.8, seed: int = 0) -> None:
        if min(count, prompt) < 1 or temperature <= 0.0:
            raise MisconfigurationException(
                f"SampleText needs count and prompt of at least 1 and a temperature above 0, not {count}, {prompt} and {temperature}."
            )
        self.count, self.prompt, self.temperature, self.seed = count, prompt, temperature, seed

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Check that the model writes text."""
        if not isinstance(pl_module, LanguageModel):
            raise MisconfigurationException(f"SampleText logs what a LanguageModel writes, not {type(pl_module).__name__}; remove it.")

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Log a text."""
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not isinstance(pl_module, LanguageModel) or not isinstance(data, TokenData):
            return
        prompt = torch.from_numpy(data.tokens("val")[: self.prompt].astype("int64"))
        text = data.decode(pl_module.generate(prompt, self.count, self.temperature, self.seed).tolist())
        shown = "".join(f"    {line}\n" for line in text.splitlines())  # TensorBoard reads Markdown, in which this is code
        for board in boards:
            board.experiment.add_text("samples", shown, trainer.global_step)
