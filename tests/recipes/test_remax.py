import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.functional import log_softmax, softmax

from recipes.__main__ import main
from recipes.language import PreferredText, ReMaxModel
from recipes.language.gpt import GPT

from .conftest import CONFIGS, QUIET

SHORT = ["--data.batch_size", "4", "--data.epoch_windows", "12", "--data.eval_windows", "4", *QUIET]
PAIRS = ["--data.prompt", "8", "--data.answer", "8"]
LAST = "runs/{}/version_0/checkpoints/last.ckpt"


def fit(name, *more):
    return main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *SHORT, *more])


@pytest.fixture
def reward(pretrained):
    assert fit("reward_topics", "--model.checkpoint", str(pretrained), "--trainer.max_epochs", "1", *PAIRS) == 0
    return LAST.format("reward_topics")


def test_the_texts_of_a_pair_begin_alike_and_the_other_is_spoilt():
    data = PreferredText(prompt=24, answer=16, batch_size=64, epoch_windows=64)
    data.setup("fit")
    pair = next(iter(data.train_dataloader()))
    text = bytes(data.tokens("train").astype("uint8"))
    assert all(bytes(one.tolist()) in text for one in pair.chosen)
    assert torch.equal(pair.chosen[:, :24], pair.rejected[:, :24])
    assert (pair.chosen != pair.rejected).any(1).float().mean() > 0.9
    first, again = (torch.cat([one.rejected for one in data.val_dataloader()]) for _ in range(2))
    assert torch.equal(first, again)


def test_sft_reward_and_remax_one_after_the_other(pretrained, capsys):
    adapters = ["--model.lora_rank", "2", "--data.context", "32"]
    assert fit("sft_topics", "--model.checkpoint", str(pretrained), "--trainer.max_epochs", "1", *adapters) == 0
    assert fit("reward_topics", "--model.checkpoint", str(pretrained), "--trainer.max_epochs", "1", *PAIRS) == 0
    answers = ["--model.prompt", "8", "--model.answer", "4", "--data.context", "8", "--trainer.max_epochs", "1"]
    assert fit("remax_topics", *answers) == 0
    assert "test reward: " in capsys.readouterr().out
    before = torch.load(LAST.format("sft_topics"), weights_only=True)["state_dict"]
    after = torch.load(LAST.format("remax_topics"), weights_only=True)["state_dict"]
    assert all(torch.equal(after[f"start.{name}"], value) for name, value in before.items())
    moved = {name for name, value in before.items() if not torch.equal(after[f"policy.{name}"], value)}
    assert moved
    assert all("lora_" in name for name in moved)


def test_the_mean_gradient_over_all_answers_is_that_of_the_regularised_reward(pretrained, reward):
    """The expected loss of one-token answers, every one of them weighed by its probability, against reward and divergence written out."""
    model = ReMaxModel(str(pretrained), reward, prompt=8, answer=1, kl=0.3, clip=100.0).double()
    for module in model.modules():
        if isinstance(module, GPT) and module.rotation is not None:
            module.rotation = module.rotation.double()
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        model.judge.base.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    prompt = torch.arange(8)[None]
    every = torch.cat([prompt.expand(256, -1), torch.arange(256)[:, None]], dim=1)
    weights = dict(model.policy.named_parameters())

    probability = softmax(model.policy(prompt)[0, -1], -1)
    log_ratio = log_softmax(model.policy(prompt)[0, -1], -1) - log_softmax(model.start(prompt)[0, -1], -1)
    wanted = (probability * model.judge(every)).sum() - 0.3 * (probability * log_ratio).sum()
    expected = torch.autograd.grad(-wanted, list(weights.values()), allow_unused=True)

    _, greedy = model.answers(prompt)
    total = sum(p.detach() * model.losses(text[None], greedy)["loss"] for p, text in zip(probability, every, strict=True))
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    compared = 0
    for name, one, other in zip(weights, found, expected, strict=True):
        if other is not None and other.abs().max() > 0:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, msg=name)
            compared += 1
    assert compared > 5


def test_greedy_answers_are_the_most_likely_ones_and_training_stays_as_it_was(pretrained, reward):
    model = ReMaxModel(str(pretrained), reward, prompt=8, answer=3)
    prompts = torch.randint(256, (2, 8))
    drawn, greedy = model.answers(prompts)
    assert drawn.shape == greedy.shape == (2, 11)
    for end in range(8, 11):
        assert torch.equal(greedy[:, end], model.policy.eval()(greedy[:, :end])[:, -1].argmax(-1))
    model.train()
    assert not model.start.training
    assert not model.judge.training
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"policy"}


def test_mistakes_are_explained(pretrained, reward):
    with pytest.raises(MisconfigurationException, match="together at most 32"):
        ReMaxModel(str(pretrained), reward, prompt=20, answer=20)
    for kl in (-1.0, math.nan):
        with pytest.raises(MisconfigurationException, match=f"kl={kl}"):
            ReMaxModel(str(pretrained), reward, prompt=8, answer=8, kl=kl)
    with pytest.raises(MisconfigurationException, match="sft_topics.yaml"):
        ReMaxModel("runs/none.ckpt", reward)
    with pytest.raises(MisconfigurationException, match="reward_topics.yaml"):
        ReMaxModel(str(pretrained), str(pretrained))
    with pytest.raises(MisconfigurationException, match="a token at least, not 0 and 8"):
        PreferredText(prompt=0, answer=8)
    short = ["--model.prompt", "9", "--model.answer", "4", "--data.context", "4"]
    assert fit("remax_topics", "--model.checkpoint", str(pretrained), "--model.reward", reward, *short) == 1
