import json

import pytest
import torch

from experiments.hessian.command import main
from experiments.hessian.quadratic import adam_scale, best_rate, condition, descend
from lightning_adam_mini.optim import AdamMini

FILES = {"fig3": ["fig3.png"], "fig8": ["fig8.png"]}


@pytest.mark.parametrize("figure", FILES)
def test_a_figure(figure, tmp_path, capsys):
    assert main([figure, "--quick", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / f"{figure}.json").read_text())
    assert all((tmp_path / file).stat().st_size > 5000 for file in FILES[figure])
    assert figure in capsys.readouterr().out


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
    optimizer = AdamMini([("w", w)], lr=rate, betas=(0.0, 0.5), eps=0.0, weight_decay=0.0)
    w.grad = h @ start
    optimizer.step()  # of one step, Adam with its second moment held is Adam
    torch.testing.assert_close(w.detach(), start - scale * (h @ start))
