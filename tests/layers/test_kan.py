"""Tests of ``netwright.layers.kan``."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.chebyshev import chebval
from safetensors.torch import load_model, save_model
from scipy.interpolate import BSpline
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from netwright.cost import count_macs, count_params
from netwright.layers.kan import (
    BASES,
    BSplineBasis,
    ChebyshevBasis,
    FourierBasis,
    GaussianRBFBasis,
    KANLayer,
    MexicanHatBasis,
    SiLUBasis,
    contract,
)

DOUBLE = torch.float64

every_basis = pytest.mark.parametrize("basis", BASES)


def scipy_values(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """All B-splines of one input, one by one, zero outside of their own knots."""
    t = knots.numpy()
    columns = [
        np.nan_to_num(BSpline.basis_element(t[i : i + order + 2], extrapolate=False)(x.numpy()))
        for i in range(len(t) - order - 1)
    ]
    return torch.from_numpy(np.stack(columns, -1))


@given(order=st.integers(1, 5), more=st.integers(1, 6), seed=st.integers(0, 99))
def test_b_splines_are_scipys_on_any_knots(order: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = BSplineBasis(2, order + more, order, (-2.0, 3.0), dtype=DOUBLE)
    basis.knots.add_(
        0.4 * torch.rand(basis.knots.shape, generator=generator, dtype=DOUBLE) * basis.knots.diff(dim=0)[0]
    )
    x = 12 * torch.rand(50, 2, generator=generator, dtype=DOUBLE) - 6  # beyond the knots, too
    splines = basis(x)[..., :-1]
    for i in range(2):
        torch.testing.assert_close(splines[:, i], scipy_values(x[:, i], basis.knots[:, i], order))


def test_a_spline_is_scipys_with_the_same_coefficients() -> None:
    layer = KANLayer(1, 1, num_basis=10, dtype=DOUBLE)
    x = torch.linspace(-1, 1, 101, dtype=DOUBLE)[:-1]
    expected = BSpline(layer.basis.knots[:, 0].numpy(), layer.weight[0, 0, :-1].detach().numpy(), 3)(x.numpy())
    residual = layer.weight[0, 0, -1] * functional.silu(x)
    torch.testing.assert_close(layer(x[:, None])[:, 0], torch.from_numpy(expected) + residual)


def test_b_splines_sum_to_one_on_the_grid_and_vanish_beyond_the_knots() -> None:
    basis = BSplineBasis(3, 12, 2, (0.0, 4.0))
    torch.testing.assert_close(basis(4 * torch.rand(200, 3))[..., :-1].sum(-1), torch.ones(200, 3))
    beyond = torch.tensor([[-0.81, 4.81, 1e30], [-torch.inf, torch.inf, 5.0]])
    assert not basis(beyond)[..., :-1].any()
    assert torch.equal(basis.grid[:, 0], torch.linspace(0, 4, 11))
    assert basis(torch.full((1, 3), torch.nan)).isnan().all()


def test_many_samples_are_treated_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    basis, weights = BSplineBasis(3, dtype=DOUBLE), torch.randn(7, 5, 3, 9, dtype=DOUBLE)
    results = []
    for tile in (10**6, 200):  # the second one takes 35 samples in parts of 5
        monkeypatch.setattr("netwright.layers._bspline._TILE", tile)
        x = torch.linspace(-2.5, 2.5, 105, dtype=DOUBLE).view(7, 5, 3).requires_grad_()
        values = basis(x)
        (slope,) = torch.autograd.grad((values * weights).sum(), x, create_graph=True)
        results.append((values, slope, torch.autograd.grad(slope.square().sum(), x)[0]))
    for whole, parts in zip(*results, strict=True):
        assert torch.equal(whole, parts)


def test_chebyshev_polynomials_are_numpys() -> None:
    basis = ChebyshevBasis(2, 7)
    x = 3 * torch.randn(20, 2, dtype=DOUBLE)
    for degree in range(7):
        expected = chebval(np.tanh(x.numpy()), np.eye(7)[degree])
        torch.testing.assert_close(basis(x)[..., degree], torch.from_numpy(expected))
    raw = ChebyshevBasis(2, 3, normalize=False)(x)
    torch.testing.assert_close(raw[..., 2], 2 * x**2 - 1)
    assert ChebyshevBasis(2, 1)(x).eq(1).all()


def test_a_saturated_tanh_has_a_finite_gradient() -> None:
    x = torch.tensor([[50.0, -50.0]], requires_grad=True)
    ChebyshevBasis(2, 8)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 2))


def test_fourier_functions() -> None:
    x = torch.randn(20, 2, dtype=DOUBLE)
    expected = [x.cos(), x.sin(), (2 * x).cos(), (2 * x).sin(), (3 * x).cos()]
    torch.testing.assert_close(FourierBasis(2, 5)(x), torch.stack(expected, -1))


def test_gaussians_are_as_wide_as_their_spacing() -> None:
    basis = GaussianRBFBasis(2, 5, grid_range=(-2.0, 2.0), dtype=DOUBLE)
    x = torch.randn(20, 2, dtype=DOUBLE)
    for b, center in enumerate((-2, -1, 0, 1, 2)):
        torch.testing.assert_close(basis(x)[..., b], (-((x - center) ** 2)).exp())


def test_gaussians_have_a_layer_norm_where_it_leaves_something() -> None:
    x = torch.randn(20, 6, dtype=DOUBLE)
    basis = GaussianRBFBasis(6, dtype=DOUBLE)
    torch.testing.assert_close(basis(3 * x + 2), basis(x), atol=1e-4, rtol=1e-3)  # the norm has an ε
    assert count_params(basis) == 12
    for without in (GaussianRBFBasis(2), GaussianRBFBasis(6, normalize=False)):
        assert count_params(without) == 0
    assert count_params(GaussianRBFBasis(2, normalize=True)) == 4


def test_mexican_hats_have_their_scale_and_shift() -> None:
    basis = MexicanHatBasis(2, 5, grid_range=(-2.0, 2.0), dtype=DOUBLE)
    with torch.no_grad():
        basis.log_scale[3, 1] = np.log(0.5)
    u = (torch.linspace(-3, 3, 50, dtype=DOUBLE) - 1) / 0.5
    expected = 2 / (3**0.5 * np.pi**0.25) * (1 - u**2) * torch.exp(-(u**2) / 2)
    x = torch.linspace(-3, 3, 50, dtype=DOUBLE)
    torch.testing.assert_close(basis(x[:, None].expand(-1, 2))[:, 1, 3], expected)
    wide = torch.linspace(-20, 20, 4001, dtype=DOUBLE)[:, None]
    norms = (MexicanHatBasis(1, 3, dtype=DOUBLE)(wide) ** 2).sum(0) * 0.01  # ∫ψ² = 1, with the scale 1 here
    torch.testing.assert_close(norms[0], torch.ones(3, dtype=DOUBLE))


def test_silu_is_one_function() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(SiLUBasis(3, 8)(x), functional.silu(x).unsqueeze(-1))


forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@forward_mode
@every_basis
def test_derivatives(basis: str) -> None:
    layer = BASES[basis](3, 6, 3, dtype=DOUBLE)
    x = torch.cat([torch.randn(2, 3), torch.tensor([[0.3, 1.9, -2.7]])]).double().requires_grad_()
    assert gradcheck(layer, x, check_forward_ad=True)
    assert gradgradcheck(layer, x)


@given(order=st.integers(1, 4))
def test_derivatives_of_splines_of_any_order(order: int) -> None:
    assert gradcheck(BSplineBasis(2, 6, order, dtype=DOUBLE), torch.rand(5, 2, dtype=DOUBLE).requires_grad_())


def test_contraction_is_the_sum_over_inputs_and_functions() -> None:
    basis, coefficients, bias = torch.randn(2, 5, 3, 4), torch.randn(6, 3, 4), torch.randn(6)
    expected = torch.einsum("abik,oik->abo", basis, coefficients) + bias
    torch.testing.assert_close(contract(basis, coefficients, bias), expected)
    for name, family in BASES.items():  # functions stand before inputs, so that nothing has to be copied
        assert family(3)(torch.randn(5, 3)).mT.is_contiguous(), name


@every_basis
def test_layer_takes_what_linear_takes(basis: str) -> None:
    layer = KANLayer.like(nn.Linear(4, 3), basis, num_basis=6)
    x = torch.randn(2, 5, 4)
    y = layer(x)
    assert y.shape == (2, 5, 3)
    torch.testing.assert_close(layer(x[1, 2]), y[1, 2])
    # every output is a sum of functions of one input each
    edges = torch.einsum("abik,oik->abio", layer.basis(x), layer.weight)
    torch.testing.assert_close(y, edges.sum(-2) + layer.bias)
    assert layer(x[:0]).shape == (0, 5, 3)


@every_basis
def test_counts_gradients_and_round_trip(basis: str, tmp_path: Path) -> None:
    layer = KANLayer(4, 3, basis, dtype=DOUBLE)
    extras = {"rbf": 2 * 4, "wavelet": 2 * 4 * 8}.get(basis, 0)
    assert count_params(layer) == 4 * 3 * {"bspline": 9, "silu": 1}.get(basis, 8) + extras
    x = torch.randn(9, 4, dtype=DOUBLE)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    if basis == "bspline":
        layer.update_grid(x)
    save_model(layer, str(tmp_path / "layer.safetensors"))
    again = KANLayer(4, 3, basis, dtype=DOUBLE)
    load_model(again, str(tmp_path / "layer.safetensors"))
    assert torch.equal(again(x), layer(x))


@every_basis
def test_runs_on_meta_and_under_autocast(basis: str) -> None:
    with torch.device("meta"):
        big = KANLayer(784, 64, basis)
        assert big(torch.empty(7, 784)).shape == (7, 64)
        size = big.basis.size
        assert count_macs(big, torch.empty(7, 784)) == 7 * 784 * 64 * size
    assert KANLayer(784, 64, basis, device="meta").weight.is_meta
    layer, x = KANLayer(6, 3, basis, bias=True), torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), atol=0.05, rtol=0.05)
    half.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("basis", ["bspline", "rbf", "chebyshev"])
def test_compiles_as_one_graph(basis: str) -> None:
    layer, x = KANLayer(6, 3, basis, bias=True), torch.randn(5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x.requires_grad_()
    torch.testing.assert_close(compiled(x), layer(x))
    (slope,) = torch.autograd.grad(compiled(x).sum(), x)
    torch.testing.assert_close(slope, torch.autograd.grad(layer(x).sum(), x)[0])


@forward_mode
def test_works_under_vmap_and_jacobians() -> None:
    layer, x = KANLayer(3, 2), torch.randn(5, 3)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    jacobian = torch.vmap(torch.func.jacrev(layer))(x)
    torch.testing.assert_close(torch.vmap(torch.func.jacfwd(layer))(x), jacobian)
    torch.testing.assert_close(jacobian[0], torch.autograd.functional.jacobian(layer, x[0]))


@pytest.mark.parametrize("basis", ["bspline", "rbf", "chebyshev", "fourier", "wavelet"])
def test_functions_of_one_input_are_learned(basis: str) -> None:
    """By least squares on the coefficients, each family fits a smooth function; local ones are weak at the ends."""
    x = torch.linspace(-1, 1, 200, dtype=DOUBLE)[30:-30, None]
    target = torch.sin(3 * x) + 0.5 * x**2
    functions = KANLayer(1, 1, basis, num_basis=16, dtype=DOUBLE).basis(x)[:, 0].detach()
    residual = target - functions @ torch.linalg.lstsq(functions, target, driver="gelsd").solution
    assert residual.abs().max() < 2e-2


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("width", [4, 256])
def test_first_signals_are_neither_lost_nor_blown_up(basis: str, width: int) -> None:
    y = torch.cat([KANLayer(width, 64, basis)(torch.randn(200, width)) for _ in range(5)])
    assert 0.1 < y.std() < 1.6


class TestUpdateGrid:
    def test_functions_stay_and_knots_follow_the_data(self) -> None:
        layer = KANLayer(3, 4, num_basis=12, bias=True, dtype=DOUBLE)
        x = 0.9 * torch.rand(5, 100, 3, dtype=DOUBLE) ** 2
        before, slopes = layer(x), layer.weight[..., -1].clone()
        layer.update_grid(x)
        # the new pieces are no wider than the old ones here, but the knots differ
        torch.testing.assert_close(layer(x), before, atol=0.02, rtol=0.02)
        assert torch.equal(layer.weight[..., -1], slopes)
        grid = layer.basis.grid
        assert (grid.diff(dim=0) > 0).all()
        counts = torch.histogram(x[..., 0].flatten(), grid[:, 0].contiguous()).hist
        assert counts.min() > 0.6 * counts.mean()  # 1 if 2 % of the grid were not uniform
        again = copy.deepcopy(layer)
        again.update_grid(x)
        torch.testing.assert_close(again(x), layer(x))  # the same knots

    def test_widening_keeps_the_function_of_a_line(self) -> None:
        layer = KANLayer(1, 1, dtype=DOUBLE)
        with torch.no_grad():
            greville = layer.basis.knots[:, 0].unfold(0, 4, 1)[:-1, 1:].mean(-1)
            layer.weight[0, 0, :-1], layer.weight[0, 0, -1] = greville, 0.0
        x = torch.linspace(-1, 1, 60, dtype=DOUBLE)[:, None]
        torch.testing.assert_close(layer(x), x)
        layer.update_grid(0.99 * x, uniform=1.0)
        torch.testing.assert_close(layer(x), x)
        torch.testing.assert_close(layer.basis.grid.diff(dim=0), torch.full((5, 1), 0.99 * 2.04 / 5, dtype=DOUBLE))

    def test_inputs_far_from_the_grid_are_met(self) -> None:
        layer = KANLayer(2, 3)
        x = torch.stack([torch.linspace(100, 200, 50), torch.full((50,), 7.0)], -1)
        before = layer.basis.knots.clone()
        assert not layer.basis(x)[..., :-1].any()
        layer.update_grid(x)
        torch.testing.assert_close(layer.basis(x)[:, 0, :-1].sum(-1), torch.ones(50))
        assert torch.equal(layer.basis.knots[:, 1], before[:, 1])  # a constant input says nothing
        assert torch.isfinite(layer.weight).all()

    def test_equal_samples_leave_the_knots_apart(self) -> None:
        layer = KANLayer(1, 1)
        layer.update_grid(torch.cat([torch.zeros(90), torch.linspace(0, 1, 10)])[:, None])
        assert (layer.basis.knots.diff(dim=0) > 1e-4).all()


def test_frozen_layers_stay_frozen_and_the_bias_is_kept() -> None:
    linear = nn.Linear(4, 3, dtype=DOUBLE)
    linear.weight.requires_grad_(False)
    layer = KANLayer.like(linear, "wavelet")
    assert torch.equal(layer.bias, linear.bias)
    assert layer.weight.dtype == DOUBLE
    assert not layer.weight.requires_grad
    assert KANLayer.like(nn.Linear(4, 3, bias=False)).bias is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KANLayer(2, 2, "spline"), r"unknown basis 'spline'; did you mean 'bspline'\?"),
        (
            lambda: KANLayer(2, 2, grid_range=(1.0, -1.0)),
            r"grid_range must be increasing and finite, got \(1.0, -1.0\)",
        ),
        (lambda: KANLayer(2, 2, "rbf", grid_range=(0.0, 0.0)), "grid_range must be increasing and finite"),
        (lambda: KANLayer(2, 2, grid_range=(0.0, float("inf"))), "grid_range must be increasing and finite"),
        (lambda: KANLayer(2, 2, num_basis=3), "num_basis must be at least order \\+ 1 = 4, got 3"),
        (lambda: KANLayer(2, 2, order=0), "order must be at least 1, got 0"),
        (lambda: KANLayer(2, 2, "rbf", num_basis=1), "num_basis must be at least 2, got 1"),
        (lambda: KANLayer(2, 2, "fourier", num_basis=0), "num_basis must be at least 1, got 0"),
        (lambda: KANLayer(0, 2), "in_features must be at least 1"),
        (lambda: KANLayer(2, 0), "out_features must be at least 1"),
        (lambda: KANLayer(2, 2)(torch.randn(4, 3)), "dimension -1 of input must have size 2"),
        (lambda: KANLayer(2, 2, "rbf").update_grid(torch.randn(9, 2)), "update_grid needs basis 'bspline', got 'rbf'"),
        (lambda: KANLayer(2, 2).update_grid(torch.randn(9, 3)), "dimension 1 of samples must have size 2"),
        (lambda: KANLayer(2, 2).update_grid(torch.randn(1, 2)), "number of samples must be at least 2, got 1"),
        (lambda: KANLayer(2, 2).update_grid(torch.randn(9, 2), 0.0), r"uniform must be in \(0, 1\], got 0.0"),
        (lambda: KANLayer(2, 2).update_grid(torch.full((9, 2), torch.nan)), "samples must be finite"),
        (lambda: contract(torch.randn(5, 2, 8), torch.randn(3, 2, 9)), "dimension -1 of basis must have size 9"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
