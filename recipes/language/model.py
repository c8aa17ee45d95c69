"""Language models: predict each next token of a text."""

import time
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from typing_extensions import override

from recipes.language.gpt import GPT, Init, Positions
from recipes.recipe import Headline, Recipe


class Perplexity(MeanMetric):
    """The exponential of the mean loss."""

    @override
    def compute(self) -> Tensor:
        """Return the perplexity of all tokens measured."""
        return super().compute().exp()


class LanguageModel(Recipe):
    """Base of the language models; a subclass sets ``net``, which turns tokens of shape (batch, length) into logits.

    A batch holds windows of ``context + 1`` tokens: each token but the last predicts the one after it. Weight decay is for matrices alone
    (the embeddings among them), as in nanoGPT. ``val/`` and ``test/perplexity`` are exponentials of the loss in nats a token.

    Args:
        vocab_size: Number of tokens that it tells apart.
        context: Longest sequence.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    headline: ClassVar[Headline] = Headline(metric="loss", title="loss", mode="min")
    learns_from: ClassVar[str] = "text"
    net: nn.Module

    def __init__(self, vocab_size: int, context: int, **optimizer_args: Any) -> None:
        super().__init__(**optimizer_args)
        self.vocab_size, self.context = vocab_size, context
        self.val_perplexity, self.test_perplexity = Perplexity(), Perplexity()
        self._tokens, self._seconds, self._started = 0, 0.0, 0.0

    @override
    def setup(self, stage: str) -> None:
        """Check that the model has room for the data's tokens and windows."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        for name, ours in (("vocab_size", self.vocab_size), ("context", self.context)):
            found = getattr(data, name, ours)
            if found > ours:
                raise MisconfigurationException(f"The model has {name} {ours} but the data have {found}; set --model.{name} {found}.")

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return matrices, which weight decay shrinks, and vectors, which it does not."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim >= 2]
        vectors = [parameter for parameter in trained if parameter.ndim < 2]
        return [{"params": matrices}] + ([{"params": vectors, "weight_decay": 0.0}] if vectors else [])

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token."""
        return self.net(tokens)

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        with self.differentiable():
            loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of the validation set."""
        self._measure(batch, "val", self.val_perplexity)

    @override
    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of the test set."""
        self._measure(batch, "test", self.test_perplexity)

    @override
    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the most likely token after each."""
        return self(batch[:, :-1]).argmax(dim=-1)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Note when a step starts."""
        self._started = time.perf_counter()

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the speed since it was last logged: on a GPU, one step alone would only tell how long it takes to launch it."""
        self._tokens += self.tokens_of(batch)
        self._seconds += time.perf_counter() - self._started
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self.log("train/tokens_per_s", self._tokens / self._seconds)
            self._tokens, self._seconds = 0, 0.0

    def tokens_of(self, batch: Any) -> int:
        """Return how many tokens a batch trains on, for the speed.

        Args:
            batch: The batch.
        """
        return batch.shape[0] * (batch.shape[1] - 1)

    @torch.no_grad()
    def generate(self, prompt: Tensor, count: int, temperature: float = 0.8, seed: int = 0) -> Tensor:
        """Return a text that goes on from another; the global random state is not touched.

        Args:
            prompt: Its tokens, of shape (length,) with a length of at least 1.
            count: How many tokens to add.
            temperature: What the logits are divided by before a token is drawn.
            seed: Seed of the draws.

        Returns:
            All tokens, of shape (length + count,).
        """
        training = self.training
        self.eval()
        generator = torch.Generator().manual_seed(seed)
        tokens = prompt.to(self.device)
        for _ in range(count):
            logits = self(tokens[None, -self.context :])[0, -1].float().cpu()
            drawn = torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator)
            tokens = torch.cat([tokens, drawn.to(tokens)])
        self.train(training)
        return tokens

    def _loss(self, batch: Tensor) -> Tensor:
        return cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def _measure(self, batch: Tensor, split: str, perplexity: Perplexity) -> None:
        loss = self._loss(batch)
        perplexity(loss, weight=len(batch))
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log(f"{split}/perplexity", perplexity, batch_size=len(batch))


class GPTModel(LanguageModel):
    """Train a GPT of our own with AdamW.

    Args:
        vocab_size: Number of tokens that it tells apart; 256 for bytes.
        context: Longest sequence.
        layers: Number of blocks.
        heads: Attention heads of a block.
        kv_heads: Heads of keys and values, a divisor of `heads` (grouped-query attention); as many as those of queries if none.
        width: Size of a token's vector, a multiple of `heads`.
        positions: ``learned`` vectors (GPT-2) or ``rotary`` (Llama).
        tied: Whether the output layer shares the token embedding's weights.
        fused_qkv: Whether one matrix makes queries, keys and values.
        bias: Whether linear layers and norms have one.
        dropout: Dropout of the embeddings and of what each layer adds.
        init: ``gpt2`` (normal of deviation .02; .02 / sqrt(2 layers) where a layer adds to its input), or PyTorch's own (``torch``).
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    def __init__(
        self,
        vocab_size: int = 256,
        context: int = 128,
        layers: int = 4,
        heads: int = 4,
        kv_heads: int | None = None,
        width: int = 128,
        positions: Positions = "learned",
        tied: bool = True,
        fused_qkv: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        init: Init = "gpt2",
        **optimizer_args: Any,
    ) -> None:
        super().__init__(vocab_size, context, **optimizer_args)
        self.save_hyperparameters()
        self.net = GPT(vocab_size, context, layers, heads, kv_heads, width, positions, tied, fused_qkv, bias, dropout, init)
