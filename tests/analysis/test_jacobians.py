"""Tests of ``netwright.analysis.jacobians``."""

import copy

import pytest
import torch
from torch import Tensor, nn

from netwright.analysis.jacobians import jacobian, jacobian_gram, jvp, vjp
from netwright.checks import InputError

BY = ("parameters", "inputs", "2")


def net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).double()
    with torch.no_grad():
        model(torch.randn(8, 1, 3, 3, dtype=torch.float64))
    return model.eval()


X = torch.randn(5, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def slow_jacobian(model: nn.Sequential, wrt: str) -> Tensor:
    """One backward pass for each output of each sample."""
    rows = []
    for sample in X:
        inputs = sample.unsqueeze(0).clone().requires_grad_()
        hidden = model[:3](inputs)
        outputs = model[3:](hidden)[0]
        by = {"parameters": list(model.parameters()), "inputs": [inputs], "2": [hidden]}[wrt]
        for output in outputs:
            pieces = torch.autograd.grad(output, by, retain_graph=True)
            rows.append(torch.cat([piece.flatten() for piece in pieces]))
    return torch.stack(rows).view(5, 3, -1)


@pytest.mark.parametrize("wrt", BY)
@pytest.mark.parametrize("chunk", [None, 2])
def test_jacobians_are_those_of_one_backward_pass_an_output(wrt: str, chunk: int | None) -> None:
    model = net()
    result = jacobian(model, X, wrt=wrt, chunk=chunk)
    shape = {"parameters": (sum(p.numel() for p in model.parameters()),), "inputs": (1, 3, 3), "2": (2, 3, 3)}[wrt]
    assert result.shape == (5, 3, *shape)
    torch.testing.assert_close(result.flatten(2), slow_jacobian(model, wrt))


def test_jacobian_between_two_layers() -> None:
    model = net()
    result = jacobian(model, X, wrt="4", of="5")
    slope = 1 - model[:6](X).detach().square()
    torch.testing.assert_close(result, torch.diag_embed(slope))
    torch.testing.assert_close(jacobian(model, X, wrt="4", of="4")[0], torch.eye(4, dtype=torch.float64))
    assert jacobian(model, X, wrt="5", of="4").count_nonzero() == 0, "an earlier layer does not depend on a later one"


@pytest.mark.parametrize("wrt", BY)
@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_gram_matrices_are_those_of_the_jacobians(wrt: str, chunk: int) -> None:
    model = net()
    rows = jacobian(model, X, wrt=wrt).flatten(2)
    flat = rows.flatten(0, 1)
    torch.testing.assert_close(jacobian_gram(model, X, wrt=wrt, chunk=chunk), flat @ flat.T)
    torch.testing.assert_close(jacobian_gram(model, X, wrt=wrt, side="wrt", chunk=chunk), flat.T @ flat / 5)


def test_gram_matrices_are_in_double_precision() -> None:
    gram = jacobian_gram(net().float(), X.float())
    assert gram.dtype == torch.float64
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-6


@pytest.mark.parametrize("wrt", BY)
@pytest.mark.parametrize("chunk", [None, 2])
def test_products_are_those_with_the_jacobians(wrt: str, chunk: int | None) -> None:
    model = net()
    rows = jacobian(model, X, wrt=wrt)
    u = torch.randn(5, 3, dtype=torch.float64)
    if wrt == "parameters":
        v = torch.randn(rows.shape[2], dtype=torch.float64)
        torch.testing.assert_close(jvp(model, X, v, chunk=chunk), rows @ v)
        torch.testing.assert_close(vjp(model, X, u, chunk=chunk), torch.einsum("na,nap->p", u, rows))
    else:
        v = torch.randn(5, *rows.shape[2:], dtype=torch.float64)
        pushed = torch.einsum("nap,np->na", rows.flatten(2), v.flatten(1))
        torch.testing.assert_close(jvp(model, X, v, wrt=wrt, chunk=chunk), pushed)
        pulled = torch.einsum("na,nap->np", u, rows.flatten(2)).view_as(v)
        torch.testing.assert_close(vjp(model, X, u, wrt=wrt, chunk=chunk), pulled)


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    full = jacobian(model, X)
    model[0].requires_grad_(False)
    torch.testing.assert_close(jacobian(model, X), full[..., 20:])


def test_nothing_about_the_model_changes() -> None:
    model = net().train()
    model[5].eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    for wrt in BY:
        rows = jacobian(model, X, wrt=wrt, of="5")
        jacobian_gram(model, X, wrt=wrt)
        jvp(model, X, rows[0, 0] if wrt == "parameters" else rows[:, 0], wrt=wrt)
        vjp(model, X, torch.ones(5, 3), wrt=wrt)
        assert not rows.requires_grad
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(self.linear(input))


def test_bad_input_is_refused() -> None:
    model = net()
    with pytest.raises(InputError, match=r"unknown layer 'parametres'; did you mean 'parameters'"):
        jacobian(model, X, wrt="parametres")
    with pytest.raises(InputError, match=r"unknown layer '9'"):
        jacobian(model, X, of="9")
    with pytest.raises(InputError, match=r"layer 'linear' must run once in a forward pass, got 2 times"):
        jacobian(Twice(), torch.ones(1, 2), wrt="linear")
    with pytest.raises(InputError, match=r"layer 'unused' must run once in a forward pass, got 0 times"):
        jacobian(Twice(), torch.ones(1, 2), wrt="unused")
    with pytest.raises(InputError, match=r"layer 'unused' must run once in a forward pass, got 0 times"):
        jacobian(Twice(), torch.ones(1, 2), of="unused")
    with pytest.raises(InputError, match=r"must have trainable parameters"):
        jacobian(nn.ReLU(), torch.ones(1, 2))
    with pytest.raises(InputError, match=r"samples must be at least 1, got 0"):
        jacobian(model, X[:0])
    with pytest.raises(InputError, match=r"chunk must be at least 1, got 0"):
        jacobian_gram(model, X, chunk=0)
    with pytest.raises(InputError, match=r"unknown side 'left'"):
        jacobian_gram(model, X, side="left")
    with pytest.raises(InputError, match=r"tangent must have shape \(115,\), got shape \(3,\)"):
        jvp(model, X, torch.ones(3))
    with pytest.raises(InputError, match=r"cotangent must have shape \(5, 3\), got shape \(5, 2\)"):
        vjp(model, X, torch.ones(5, 2))
