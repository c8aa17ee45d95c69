import pytest
import torch
from torch.nn.functional import cross_entropy

from experiments.hessian.command import main
from experiments.hessian.fig8 import BETAS, CONTEXT, VOCABULARY, Training
from experiments.hessian.quadratic import adam_scale, best_rate, condition, descend
from experiments.result import Result
from lightning_adam_mini.optim import AdamMini
from recipes.language.gpt import GPT


@pytest.mark.parametrize("figure", ["fig3", "fig8"])
def test_a_figure(figure, tmp_path, capsys):
    assert main([figure, "--quick", "--seed", "3", "--out", str(tmp_path)]) == 0
    result = Result.load(tmp_path / f"hessian_{figure}.json")
    assert result.command.startswith(f"python -m experiments hessian {figure} --quick")
    assert (result.page, result.seeds[0]) == ("hessian", 3)
    assert {row["seed"] for row in result.rows} == set(result.seeds)
    assert (tmp_path / f"{figure}.png").stat().st_size > 5000
    assert result.tables[0].markdown() in capsys.readouterr().out


def test_leaving_nothing_out_is_adamw():
    training = Training(seed=0, steps=12, layers=1)
    torch.manual_seed(0)
    model = GPT(VOCABULARY, CONTEXT, layers=1, heads=4, width=32, tied=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, betas=BETAS, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(training.batches, start=1):
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = training.lr * min(1.0, step / 10) * max(0.1, 1 - step / 12)
        optimizer.step()
    assert training.loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-4)
    name = "blocks.0.mlp.up_proj.weight"
    same, slower, faster = training.run([{}, {name: 0.0}, {name: 4 * training.rates[name]}], training.lr)[0]
    assert same == pytest.approx(training.loss, rel=1e-5)  # whatever runs beside it
    assert len({same, slower, faster}) == 3


def test_one_rate_and_adam_on_a_quadratic():
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    h = basis @ torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)) @ basis.T
    assert best_rate(h) == pytest.approx(1 / 3)
    assert condition(h) == pytest.approx(5)
    start = torch.randn(5, dtype=torch.float64)
    assert descend(h, start, torch.tensor(best_rate(h)), 60)[-1] < 1e-15  # ((5 - 1) / (5 + 1)) ** 120
    w = torch.nn.Parameter(start.clone())
    scale = adam_scale(h, start)
    rate = float((scale * (h @ start).abs())[0])
    optimizer = AdamMini([("w", w)], lr=rate, betas=(0.0, 0.5), eps=0.0, weight_decay=0.0, layouts={})
    w.grad = h @ start
    optimizer.step()  # of one step, Adam with its second moment held is Adam
    torch.testing.assert_close(w.detach(), start - scale * (h @ start))
