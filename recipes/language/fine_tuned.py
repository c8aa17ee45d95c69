"""Fine-tuning of a language model from its checkpoint: all of it, or low-rank adapters (LoRA) by PEFT."""

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from recipes.checkpoint import load_recipe
from recipes.language.hugging_face import HuggingFaceModel
from recipes.language.model import GPTModel, LanguageModel


class FineTunedModel(LanguageModel):
    """Go on training a checkpoint of `GPTModel` or `HuggingFaceModel`, on other text, with AdamW.

    With `lora_rank` the model's weights are frozen, and each linear layer but the output layer gets an adapter (LoRA, Hu et al. 2021): its
    output is ``W x + (alpha / rank) B A x``, A of shape (rank, inputs) and B of shape (outputs, rank). Adam-mini keeps a second moment for
    each row of A, as for the output neurons of any matrix, and splits B like the weight that it adds to: by head for queries and keys, by
    output neuron elsewhere. Frozen weights have no state at all.

    Args:
        checkpoint: The checkpoint to start from.
        lora_rank: Rank of the adapters; 0 trains all weights.
        lora_alpha: Scale of the adapters, times their rank; the rank if none.
        lora_dropout: Dropout of what goes into an adapter.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    def __init__(
        self, checkpoint: str, lora_rank: int = 0, lora_alpha: float | None = None, lora_dropout: float = 0.0, **optimizer_args: Any
    ) -> None:
        if lora_rank < 0:
            raise MisconfigurationException(f"Invalid lora_rank value: {lora_rank}, because it counts; give 0 to train all weights.")
        base, _ = load_recipe((GPTModel, HuggingFaceModel), Path(checkpoint), "configs/gpt_stdlib.yaml")
        super().__init__(base.vocab_size, base.context, **optimizer_args)
        self.save_hyperparameters()
        self.base = base.train()
        if lora_rank:
            add_adapters(base.net, lora_rank, lora_rank if lora_alpha is None else lora_alpha, lora_dropout)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token."""
        return self.base(tokens)


def add_adapters(net: Any, rank: int, alpha: float, dropout: float) -> None:
    """Freeze a model, and give each linear layer but the output layer an adapter.

    Args:
        net: The model, which hands out its output layer by ``get_output_embeddings()``; changed in place.
        rank: Rank of the adapters.
        alpha: Their scale, times their rank.
        dropout: Dropout of what goes into an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise MisconfigurationException(
            "lora_rank needs peft, which is not installed: pip install 'lightning-adam-mini[recipes]'; or set --model.lora_rank 0."
        ) from error
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head = net.get_output_embeddings()
    targets = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)  # pyright: ignore[reportArgumentType]
    inject_adapter_in_model(config, net)
