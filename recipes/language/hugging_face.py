"""Any causal language model of Hugging Face's transformers, from its configuration."""

from difflib import get_close_matches
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from recipes.language.model import LanguageModel


class HuggingFaceModel(LanguageModel):
    """Train a causal language model of Hugging Face's transformers from scratch, with AdamW.

    Args:
        config: Its configuration, as in a ``config.json``: ``{model_type: llama, hidden_size: 128, num_hidden_layers: 4, ...}``. What is
            left out is as in the configuration's class; ``vocab_size`` and the longest sequence are taken from the other arguments.
        vocab_size: Number of tokens that it tells apart; 256 for bytes.
        context: Longest sequence.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    def __init__(self, config: dict[str, Any], vocab_size: int = 256, context: int = 128, **optimizer_args: Any) -> None:
        super().__init__(vocab_size, context, **optimizer_args)
        self.save_hyperparameters()
        from transformers import AutoConfig, AutoModelForCausalLM  # seconds to import, so that --help does without
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        kind = config.get("model_type")
        if kind not in KNOWN:
            near = ", ".join(get_close_matches(str(kind), KNOWN)) or "gpt2, llama, ..."
            raise MisconfigurationException(
                f"Invalid config: transformers has no causal language model of model_type {kind!r}; near matches: {near}."
            )
        sizes = {"vocab_size": vocab_size, "max_position_embeddings": context, "use_cache": False}
        # The ids of special tokens are by default those of a large vocabulary.
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        made = AutoConfig.for_model(**{**special, **config, **sizes})
        self.net = AutoModelForCausalLM.from_config(made)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token."""
        return self.net(input_ids=tokens).logits
