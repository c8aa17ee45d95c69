"""Reinforcement learning of a language model from a reward model: ReMax (Li et al. 2024, arXiv 2310.10505)."""

from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from recipes.checkpoint import load_recipe
from recipes.language.model import LanguageModel
from recipes.language.reward import RewardModel, load_language_model
from recipes.recipe import Headline


class ReMaxModel(LanguageModel):
    """A language model that learns to give answers with a high reward, by REINFORCE with the greedy answer's reward as the baseline.

    Of each prompt x it draws one answer y, and decodes the most likely one, z. With the policy p, the model r that gives rewards and the
    model q that it started from, the loss is the mean over tokens t of

        ``-log p(y_t) (clip(r(x, y) - r(x, z)) - kl (log p(y_t) - log q(y_t)))``,

    the second factor without a gradient, as in the authors' code. ``train/kl``, ``val/kl`` and ``test/kl`` are estimates of the divergence
    from q in nats per token.

    Args:
        checkpoint: A checkpoint of `FineTunedModel` (or `GPTModel`) to start from.
        reward: A checkpoint of `RewardModel`.
        prompt: First tokens of a window, which are the prompt.
        answer: Tokens of an answer.
        kl: Weight of the divergence from the start.
        clip: Largest size of a reward's difference from the baseline.
        temperature: What the logits are divided by, where answers are drawn and where their probabilities are taken.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    headline: ClassVar[Headline] = Headline(metric="reward", title="reward", mode="max", beside=("kl",))

    def __init__(
        self,
        checkpoint: str,
        reward: str,
        prompt: int = 32,
        answer: int = 32,
        kl: float = 0.05,
        clip: float = 5.0,
        temperature: float = 1.0,
        **optimizer_args: Any,
    ) -> None:
        policy = load_language_model(checkpoint)
        judge, _ = load_recipe((RewardModel,), Path(reward), "configs/reward_topics.yaml")
        super().__init__(policy.vocab_size, policy.context, **optimizer_args)
        self.save_hyperparameters()
        room = min(policy.context, judge.context)
        if min(prompt, answer) < 1 or prompt + answer > room:
            raise MisconfigurationException(
                f"prompt={prompt} and answer={answer} must be at least 1, and together at most {room}, the models' context."
            )
        if judge.vocab_size != policy.vocab_size:
            raise MisconfigurationException(
                f"{reward} knows {judge.vocab_size} tokens and {checkpoint} {policy.vocab_size}; train both from one language model."
            )
        if not (temperature > 0.0 and kl >= 0.0 and clip > 0.0):  # nor nan
            raise MisconfigurationException(f"temperature={temperature} and clip={clip} must be above 0, and kl={kl} must not be negative.")
        self.prompt, self.answer, self.kl, self.clip, self.temperature = prompt, answer, kl, clip, temperature
        self.policy = policy.train()
        self.start, self.judge = (deepcopy(policy).eval().requires_grad_(False), judge.eval().requires_grad_(False))

    @override
    def setup(self, stage: str) -> None:
        """Check that the data's windows are as long as a prompt."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if getattr(data, "context", self.prompt) + 1 < self.prompt:
            raise MisconfigurationException(
                f"A prompt has {self.prompt} tokens, but a window is shorter; set --data.context {self.prompt}."
            )

    @override
    def train(self, mode: bool = True) -> "ReMaxModel":
        """Set the mode of the policy; the models that it is compared with and judged by are never in training."""
        super().train(mode)
        self.start.eval()
        self.judge.eval()
        return self

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the policy's logits of each next token."""
        return self.policy(tokens)

    @torch.no_grad()
    def answers(self, prompts: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the prompts with an answer that is drawn, and with the most likely one.

        Args:
            prompts: Tokens, of shape (batch, prompt).
            generator: What the draws come from; torch's own if none.

        Returns:
            Two tensors of shape (batch, prompt + answer).
        """
        mode = self.policy.training
        self.policy.eval()
        count = len(prompts)
        tokens = torch.cat([prompts, prompts])
        for _ in range(self.answer):
            drawn, greedy = self.policy(tokens)[:, -1].float().split(count)
            drawn = torch.multinomial(torch.softmax(drawn / self.temperature, dim=-1), 1, generator=generator)
            tokens = torch.cat([tokens, torch.cat([drawn, greedy.argmax(-1, keepdim=True)])], dim=1)
        self.policy.train(mode)
        drawn, greedy = tokens.split(count)
        return drawn, greedy

    def log_probabilities(self, model: nn.Module, texts: Tensor) -> Tensor:
        """Return how likely a model finds each token of the answers, as a logarithm.

        Args:
            model: The model.
            texts: Prompts and answers, of shape (batch, prompt + answer).

        Returns:
            A tensor of shape (batch, answer).
        """
        logits = model(texts[:, :-1])[:, -self.answer :] / self.temperature
        wide = torch.promote_types(logits.dtype, torch.float32)
        return torch.log_softmax(logits, dim=-1, dtype=wide).gather(-1, texts[:, -self.answer :, None]).squeeze(-1)

    def losses(self, drawn: Tensor, greedy: Tensor) -> dict[str, Tensor]:
        """Return the loss of some answers by the name ``loss``, and what it is made of.

        Args:
            drawn: Prompts with an answer that the policy has drawn, of shape (batch, prompt + answer).
            greedy: The same prompts with the most likely answer.
        """
        with torch.no_grad():
            reward, baseline = self.judge(drawn), self.judge(greedy)
            before = self.log_probabilities(self.start, drawn)
        now = self.log_probabilities(self.policy, drawn)
        ratio = now.detach() - before
        gain = (reward - baseline).clamp(-self.clip, self.clip)[:, None] - self.kl * ratio
        return {"loss": -(gain * now).mean(), "reward": reward.mean(), "greedy_reward": baseline.mean(), "kl": ratio.mean()}

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of windows, of which the first tokens are the prompts."""
        answers = self.answers(batch[:, : self.prompt])
        with self.differentiable():
            found = self.losses(*answers)
        self.log_dict({f"train/{name}": value for name, value in found.items()}, batch_size=len(batch))
        return found["loss"]

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of the validation set."""
        self._measure_answers(batch, batch_idx, "val")

    @override
    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of the test set."""
        self._measure_answers(batch, batch_idx, "test")

    @override
    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the prompts, each with an answer."""
        return self.answers(batch[:, : self.prompt])[0]

    @override
    def tokens_of(self, batch: Tensor) -> int:
        """Return how many tokens the answers have."""
        return len(batch) * self.answer

    def _measure_answers(self, batch: Tensor, batch_idx: int, split: str) -> None:
        generator = torch.Generator(self.device).manual_seed(batch_idx)  # the same draws each time
        drawn, greedy = self.answers(batch[:, : self.prompt], generator)
        ratio = self.log_probabilities(self.policy, drawn) - self.log_probabilities(self.start, drawn)
        logged = {"reward": self.judge(drawn), "greedy_reward": self.judge(greedy), "kl": ratio}
        self.log_dict({f"{split}/{name}": value.mean() for name, value in logged.items()}, batch_size=len(batch))
