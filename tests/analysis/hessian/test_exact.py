import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lightning_adam_mini.analysis.hessian import differentiate_twice, exact_hessian


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 2, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


X = torch.Generator().manual_seed(3)
MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3, generator=X)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(8, 2)),
        torch.randn(4, 1, 4, 4, generator=X),
    ),
    "attention": (Attention, torch.randn(2, 3, 4, generator=X)),
    "recurrent": (Recurrent, torch.randn(2, 3, 2, generator=X)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5)),
        torch.randint(5, (3, 4), generator=X),
    ),
}


def loss_of(x):
    # float64 targets, so that nothing is rounded to float32 where the module is in float64
    def loss(module):
        y = module(x)
        targets = torch.arange(y.numel(), dtype=torch.float64).view_as(y).sin()
        return (y.sin() - targets).square().mean()

    return loss


@pytest.fixture(params=MODULES)
def case(request):
    make, x = MODULES[request.param]
    torch.manual_seed(0)
    return make(), x


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def test_equals_finite_differences(case):
    module, x = case
    hessian = exact_hessian(module, loss_of(x), dtype=torch.float64, chunk=7)
    module = module.double()
    loss = loss_of(x.double() if x.is_floating_point() else x)
    parameters = list(module.parameters())
    step, columns = 1e-5, []
    for p in parameters:
        for i in range(p.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.view(-1)[i] += sign * step
                ends.append(flat(torch.autograd.grad(loss(module), parameters)))
                with torch.no_grad():
                    p.view(-1)[i] -= sign * step
            columns.append((ends[0] - ends[1]) / (2 * step))
    expected = torch.stack(columns)
    torch.testing.assert_close(hessian, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()) + 1e-9)


def test_equals_torchs_own(case):
    module, x = case
    hessian = exact_hessian(module, loss_of(x), dtype=torch.float64)
    module = module.double()
    x = x.double() if x.is_floating_point() else x
    names, parameters = zip(*module.named_parameters(), strict=True)

    def value(*tensors):
        return loss_of(x)(lambda inputs: functional_call(module, dict(zip(names, tensors, strict=True)), (inputs,)))

    with sdpa_kernel(SDPBackend.MATH):
        blocks = torch.autograd.functional.hessian(value, parameters)
    sizes = [p.numel() for p in parameters]
    expected = torch.cat(
        [torch.cat([block.reshape(m, n) for block, n in zip(row, sizes, strict=True)], 1) for row, m in zip(blocks, sizes, strict=True)]
    )
    torch.testing.assert_close(hessian, expected, rtol=1e-9, atol=1e-13)


def test_entries_are_a_principal_block(case):
    module, x = case
    name = next(name for name, p in module.named_parameters() if p.ndim > 1)
    chosen = torch.tensor([5, 0, 3])
    whole = exact_hessian(module, loss_of(x), [name])
    torch.testing.assert_close(exact_hessian(module, loss_of(x), [name], entries={name: chosen}), whole[chosen][:, chosen])


def test_the_module_is_left_as_it_is():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    x = torch.randn(8, 4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="random numbers .* seed 0, once for all"):
        exact_hessian(module, lambda m: m(x).square().mean(), ["0.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_a_mask_of_dropout_holds_for_all_columns():
    module = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Dropout(0.5), nn.Linear(6, 1, bias=False))
    x = torch.randn(5, 3)
    with pytest.warns(UserWarning, match="random numbers"):
        hessian = exact_hessian(module, lambda m: m(x).square().mean(), chunk=2)
    torch.testing.assert_close(hessian, hessian.T)  # with a mask for each it would not be symmetric
    with pytest.warns(UserWarning, match="1 dropout layer off"):
        exact_hessian(module.eval(), lambda m: m(x).square().mean())


def test_what_vmap_does_not_know():
    class Cube(torch.autograd.Function):  # without setup_context and vmap
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    module = nn.Linear(3, 1, bias=False)
    hessian = exact_hessian(module, lambda m: Cube.apply(m.weight).sum())
    torch.testing.assert_close(hessian, torch.diag(6 * module.weight.detach()[0]))


def test_compiled_modules_and_linear_losses():
    module = nn.Linear(2, 1, bias=False)
    compiled = torch.compile(module, backend="eager")
    x = torch.tensor([[1.0, 3.0]])
    assert exact_hessian(compiled, lambda m: m(x).square().sum()).tolist() == [[2.0, 6.0], [6.0, 18.0]]
    assert exact_hessian(module, lambda m: m(x).sum()).tolist() == [[0.0, 0.0], [0.0, 0.0]]


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def frozen():
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    return module


BAD = {
    "no gradient": (lambda: nn.Linear(2, 2), lambda m: m.weight.detach().sum(), None, "has no gradient"),
    "no tensor": (lambda: nn.Linear(2, 2), lambda m: 1.0, None, "is float, not a tensor"),
    "no number": (lambda: nn.Linear(2, 2), lambda m: m.weight, None, r"shape \(2, 2\)"),
    "not finite": (lambda: nn.Linear(2, 2), lambda m: m.weight.sum() * torch.inf, None, "is -?inf|is nan"),
    "unknown": (lambda: nn.Linear(2, 2), lambda m: m.weight.sum(), ["wieght"], "no parameter 'wieght'.*weight, bias"),
    "frozen": (frozen, lambda m: m.bias.sum(), ["weight"], "'weight' of shape .* frozen.*unfreeze"),
    "all frozen": (lambda: frozen().requires_grad_(False), lambda m: m.bias.sum(), None, "all are frozen"),
    "unused": (lambda: nn.Linear(2, 2), lambda m: m.bias.square().sum(), ["weight"], "'weight' has no Hessian, because it is not used"),
    "once": (lambda: nn.Linear(2, 2), lambda m: Once.apply(m.weight).square().sum(), ["weight"], "once_differentiable.*plain operations"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), lambda m: m.weight.sum(), None, "meta device"),
    "large": (lambda: nn.Linear(400, 400), lambda m: m.weight.square().sum(), None, "95.4 GiB.*hutchinson"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, loss, names, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        exact_hessian(make(), loss, names)


def test_sharded_modules_are_refused():
    module = nn.Linear(2, 2)
    module.weight.ds_id = 0  # what DeepSpeed's ZeRO 3 marks parameters with
    with pytest.raises(ValueError, match="'weight' is sharded.*one device"):
        exact_hessian(module, lambda m: m.weight.sum())


def test_frozen_quantised_and_unused_are_left_out_and_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)

    with differentiate_twice(Odd(), lambda m: m.used.square().sum()) as curvature:
        assert list(curvature.parameters) == ["used"]
        assert curvature.left_out == {
            "frozen": "frozen",
            "codes": "quantised or of whole numbers (torch.int8)",
            "unused": "not used by the loss",
        }


def test_cross_entropy_of_one_layer_is_its_formula():
    torch.manual_seed(0)
    module, x, y = nn.Linear(3, 4, bias=False).double(), torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    p = module(x)[0].softmax(0)
    expected = torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x[0], x[0]))
    torch.testing.assert_close(exact_hessian(module, lambda m: cross_entropy(m(x), y)), expected.detach())
