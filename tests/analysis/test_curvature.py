"""Tests of ``netwright.analysis.curvature``."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from netwright.analysis.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    basis_bytes,
    criteria,
    hutchinson_trace,
    lanczos,
    lanczos_eigenpairs,
    power_iteration,
    smooth,
)
from netwright.checks import InputError
from netwright.models.vision.resnet import resnet_cifar


def symmetric(values: list[float], seed: int = 0) -> Tensor:
    """A dense matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    return rotation @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ rotation.T


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


class Quadratic(nn.Module):
    """Puts its weights out, so that the loss can be ½ wᵀ A w."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, input: Tensor) -> Tensor:
        return self.w


def quadratic(matrix: Tensor) -> HessianOperator:
    data = torch.zeros(1, 1), torch.zeros(1)
    return HessianOperator(Quadratic(len(matrix)), lambda w, _: 0.5 * w @ matrix @ w, data)


def small_net(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ).to(dtype)
    x = torch.randn(12, 1, 4, 4, dtype=dtype)
    with torch.no_grad():
        model(x)  # so that running statistics are not those of a new layer
    return model.eval(), (x, torch.randint(3, (12,)))


def dense_hessian(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x, y = data

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(functional_call(model, tensors, (x,)), y)

    blocks = jacrev(jacrev(loss))(parameters)
    rows = [torch.cat([blocks[a][b].reshape(p.numel(), -1) for b in parameters], dim=1) for a, p in parameters.items()]
    return torch.cat(rows)


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize(("batch", "at_once"), [(None, 1), (5, 4)])
def test_products_are_those_of_the_dense_hessian(keep_graph: bool, batch: int | None, at_once: int) -> None:
    model, data = small_net()
    operator = HessianOperator(
        model, functional.cross_entropy, data, batch=batch, keep_graph=keep_graph, at_once=at_once
    )
    dense = dense_hessian(model, data)
    vectors = torch.randn(6, operator.size, dtype=torch.float64)
    torch.testing.assert_close(operator.multiply(vectors), vectors @ dense)
    torch.testing.assert_close(operator.multiply(vectors[0]), dense @ vectors[0])


def test_batches_that_come_one_by_one_give_the_same() -> None:
    model, (x, y) = small_net()
    together = HessianOperator(model, functional.cross_entropy, (x, y))
    stream = HessianOperator(model, functional.cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])])
    v = torch.randn(together.size, dtype=torch.float64)
    torch.testing.assert_close(stream.multiply(v), together.multiply(v))
    torch.testing.assert_close(stream.gradient(), together.gradient())
    assert stream.loss() == pytest.approx(together.loss())


def test_gradient_and_names_follow_the_parameters() -> None:
    model, data = small_net()
    operator = HessianOperator(model, functional.cross_entropy, data)
    functional.cross_entropy(model(data[0]), data[1]).backward()
    parts = operator.split(operator.gradient())
    assert list(parts) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parts[name], parameter.grad)


def test_the_operator_stays_where_it_was_built() -> None:
    model, data = small_net()
    operator = HessianOperator(model, functional.cross_entropy, data)
    v = torch.randn(operator.size, dtype=torch.float64)
    before, loss = operator.multiply(v), operator.loss()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert torch.equal(operator.multiply(v), before)
    assert operator.loss() == loss


def test_frozen_parameters_are_left_out_and_shared_ones_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.b.bias.requires_grad_(False)

        def forward(self, input: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(input)))

    model = Tied().double()
    data = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    operator = HessianOperator(model, functional.mse_loss, data)
    assert operator.names == ("a.weight", "a.bias")
    assert operator.size == 12
    a = model.a.weight.detach().clone()

    def loss(flat: Tensor) -> Tensor:
        weight, bias = flat[:9].view(3, 3), flat[9:]
        outputs = torch.tanh(data[0] @ weight.T + bias) @ weight.T + model.b.bias
        return functional.mse_loss(outputs, data[1])

    dense = jacrev(jacrev(loss))(torch.cat([a.flatten(), model.a.bias.detach()]))
    torch.testing.assert_close(operator.multiply(torch.eye(12, dtype=torch.float64)), dense)


def test_training_mode_uses_the_statistics_of_the_batch_and_the_same_dropout_every_time() -> None:
    model, data = small_net()
    model.append(nn.Dropout(0.5))
    buffers = copy.deepcopy(dict(model.named_buffers()))
    operator = HessianOperator(model, functional.cross_entropy, data, training=True, keep_graph=False)
    v = torch.randn(operator.size, dtype=torch.float64)
    torch.testing.assert_close(operator.multiply(v), operator.multiply(v), rtol=0, atol=0)
    fixed = HessianOperator(model, functional.cross_entropy, data)
    assert not torch.allclose(operator.multiply(v), fixed.multiply(v))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_gauss_newton_is_the_jacobian_around_the_curvature_of_the_loss() -> None:
    model, (x, y) = small_net()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.cat(
        [block.reshape(12, 3, -1) for block in jacrev(lambda p: functional_call(model, p, (x,)))(parameters).values()],
        dim=2,
    )
    p = model(x).detach().softmax(1)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    dense = torch.einsum("nap,nab,nbq->pq", jacobian, curvature, jacobian) / 12
    for at_once in (1, 8):
        operator = GaussNewtonOperator(model, functional.cross_entropy, (x, y), batch=5, at_once=at_once)
        torch.testing.assert_close(operator.multiply(torch.eye(operator.size, dtype=torch.float64)), dense)


def test_gauss_newton_is_the_hessian_of_a_linear_model() -> None:
    data = torch.randn(7, 4), torch.randint(3, (7,))
    model = nn.Linear(4, 3)
    v = torch.randn(15)
    full = HessianOperator(model, functional.cross_entropy, data).multiply(v)
    torch.testing.assert_close(GaussNewtonOperator(model, functional.cross_entropy, data).multiply(v), full)


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature() -> None:
    operator = HessianOperator(nn.Linear(3, 1), lambda f, _: f.mean(), (torch.randn(4, 3), torch.zeros(4)))
    assert operator.multiply(torch.randn(2, 4)).count_nonzero() == 0
    assert float(operator.top_eigs().values[0]) == 0


def test_attention_and_half_precision_inputs_of_any_kind_work() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    data = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    operator = HessianOperator(model, functional.mse_loss, data)
    v = torch.randn(operator.size)
    rows = operator.multiply(torch.stack([v, 2 * v]))
    torch.testing.assert_close(rows[1], 2 * rows[0], rtol=1e-3, atol=1e-5)


def test_a_model_that_needs_the_usual_layout_gets_it() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(48, 2)

        def forward(self, input: Tensor) -> Tensor:
            return self.linear(self.conv(input).view(len(input), -1))

    model = Views().double()
    data = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randint(2, (6,))
    operator = HessianOperator(model, functional.cross_entropy, data)
    v = torch.randn(operator.size, dtype=torch.float64)
    torch.testing.assert_close(operator.multiply(v), dense_hessian(model, data) @ v)


# --- the model stays as it was ----------------------------------------------------------------------------------------


def test_nothing_about_the_model_changes() -> None:
    model, data = small_net(torch.float32)
    model[0].train()  # a mixture of modes
    model[5].weight.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    calls: list[int] = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    for kind in (HessianOperator, GaussNewtonOperator):
        for training in (False, True):
            operator = kind(model, functional.cross_entropy, data, batch=6, training=training)
            operator.top_eigs(2, iters=8)
            operator.top_eigs(1, iters=3, method="power")
            operator.trace(iters=4)
            operator.spectral_density(6)
            operator.gradient()
            operator.loss()
    assert calls, "the user's own hooks run"
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert torch.equal(gradients.pop("7.weight"), torch.ones(3, 4))
    assert all(gradient is None for gradient in gradients.values())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["5.weight"]


# --- eigenpairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_top_eigenpairs_of_a_network_are_those_of_the_dense_hessian(method: str) -> None:
    model, data = small_net()
    dense = dense_hessian(model, data)
    values, vectors = torch.linalg.eigh(dense)
    order = values.abs().argsort(descending=True)[:3]
    pairs = HessianOperator(model, functional.cross_entropy, data, batch=6).top_eigs(
        3, iters=500, tol=1e-8, method=method
    )
    torch.testing.assert_close(pairs.values, values[order], rtol=1e-5, atol=0)
    overlap = (pairs.vectors * vectors[:, order].T).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=1e-3, atol=0)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(3, dtype=torch.float64))


def test_residuals_are_what_they_say() -> None:
    matrix = symmetric([5.0, -4.0, 3.0, 1.0, 0.5, 0.1])
    for pairs in (
        power_iteration(matrix.mv, zeros(6), 2, tol=1e-3),
        lanczos_eigenpairs(matrix.mv, zeros(6), 2, iters=4),
        lanczos_eigenpairs(matrix.mv, zeros(6), 2, iters=4, reorth=2),
    ):
        left = (pairs.vectors @ matrix - pairs.values.unsqueeze(1) * pairs.vectors).norm(dim=1)
        torch.testing.assert_close(pairs.residuals, left, rtol=1e-6, atol=1e-10)


def test_a_loose_tolerance_does_not_spoil_the_pairs_that_follow() -> None:
    """Rayleigh and Ritz within the vectors that were found undo what deflation against inexact ones leaves."""
    matrix = symmetric([10.0, 9.0, 8.0] + [0.01] * 20)
    pairs = power_iteration(matrix.mv, zeros(23), 3, tol=1e-2)
    torch.testing.assert_close(pairs.values, torch.tensor([10.0, 9.0, 8.0], dtype=torch.float64), rtol=1e-4, atol=0)


def test_eigenvalues_of_either_sign_count_by_magnitude() -> None:
    matrix = symmetric([-7.0, 3.0, 2.0, -1.0])
    expected = torch.tensor([-7.0, 3.0], dtype=torch.float64)
    for find in (power_iteration, lanczos_eigenpairs):
        torch.testing.assert_close(find(matrix.mv, zeros(4), 2, 200, 1e-10).values, expected)


def test_the_number_of_products_is_counted() -> None:
    matrix, count = symmetric([float(i) for i in range(1, 41)]), [0]

    def multiply(v: Tensor) -> Tensor:
        count[0] += 1
        return matrix @ v

    for pairs in (
        lambda: lanczos_eigenpairs(multiply, zeros(40), 2, 40),
        lambda: lanczos_eigenpairs(multiply, zeros(40), 2, 40, reorth=3),
        lambda: power_iteration(multiply, zeros(40), 2, 30),
    ):
        count[0] = 0
        assert pairs().products == count[0]


def test_lanczos_needs_fewer_products_than_power_iteration() -> None:
    matrix = symmetric([10.0, 9.0] + [float(i) / 10 for i in range(60)])
    lazy = lanczos_eigenpairs(matrix.mv, zeros(62), 2, 60)
    assert lazy.products < 0.7 * power_iteration(matrix.mv, zeros(62), 2, 200, 1e-6).products


# --- Lanczos and the spectral density ---------------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.integers(0, 100))
def test_as_many_steps_as_dimensions_give_all_eigenvalues(values: list[float], seed: int) -> None:
    """Also where eigenvalues coincide: a complete invariant subspace is followed by a new one."""
    matrix = symmetric(values, seed)
    result = lanczos(matrix.mv, torch.ones(len(values), dtype=torch.float64), len(values))
    nodes, weights = result.quadrature()
    torch.testing.assert_close(nodes, torch.tensor(sorted(values), dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert float(weights.sum()) == pytest.approx(1)
    basis = result.basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(values), dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(basis @ matrix @ basis.T, result.matrix(), atol=1e-6, rtol=0)


def test_spectral_density_of_a_quadratic_loss_is_its_spectrum() -> None:
    values = [-2.0, -0.5, 0.0, 0.1, 1.0, 7.0, 30.0]
    eigs, weights = quadratic(symmetric(values)).spectral_density(iters=100, runs=3)
    assert eigs.shape == weights.shape == (3, 7)
    torch.testing.assert_close(eigs, torch.tensor([sorted(values)] * 3, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_moments_of_the_quadrature_are_exact() -> None:
    """m nodes integrate polynomials up to degree 2m − 1: here zᵀ Aᵖ z / n for p up to 5."""
    matrix = symmetric([float(i) ** 1.5 / 20 - 1 for i in range(30)])
    start = torch.randn(30, dtype=torch.float64)
    nodes, weights = lanczos(matrix.mv, start, 3).quadrature()
    for power in range(6):
        exact = start @ torch.linalg.matrix_power(matrix, power) @ start / (start @ start)
        torch.testing.assert_close((weights * nodes**power).sum(), exact)


def test_reorthogonalisation_keeps_eigenvalues_from_coming_twice() -> None:
    """In single precision without it, the largest eigenvalue of a long run comes out several times."""
    values = torch.cat([torch.linspace(0, 1, 200), torch.tensor([50.0, 100.0])])
    matrix, start = torch.diag(values), torch.ones(202)

    def copies(reorth: int | str) -> int:
        nodes, _ = lanczos(matrix.mv, start, 60, reorth=reorth).quadrature()
        return int((nodes > 90).sum())

    assert copies("full") == 1
    assert copies(0) > 1


def test_a_window_keeps_that_many_vectors() -> None:
    matrix = symmetric([float(i) for i in range(30)])
    start = torch.ones(30, dtype=torch.float64)
    full, window, none = (lanczos(matrix.mv, start, 12, reorth=reorth) for reorth in ("full", 4, 0))
    assert [len(result.basis) for result in (full, window, none)] == [12, 4, 0]
    torch.testing.assert_close(window.diagonal, full.diagonal)
    torch.testing.assert_close(none.off_diagonal, full.off_diagonal)


def test_breakdown_goes_on_in_a_new_subspace() -> None:
    result = lanczos(lambda v: 2 * v, torch.ones(5, dtype=torch.float64), 4)
    assert result.off_diagonal.tolist() == [0, 0, 0]
    assert result.diagonal.tolist() == pytest.approx([2, 2, 2, 2])


def test_memory_of_the_basis() -> None:
    assert basis_bytes(1000, 100) == 400_000
    assert basis_bytes(1000, 100, 10, torch.float64) == 80_000


def test_a_basis_that_does_not_fit_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 100

    monkeypatch.setattr("netwright.analysis._krylov.psutil.virtual_memory", Memory)
    with pytest.warns(UserWarning, match="the basis of Lanczos takes"):
        lanczos(lambda v: v, torch.ones(5), 4)


def test_smooth_curve_is_a_density_with_its_mass_at_the_nodes() -> None:
    eigs = torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    weights = torch.tensor([[0.7, 0.3], [0.9, 0.1]])
    places, density = smooth(eigs, weights, points=4000)
    assert float(torch.trapezoid(density, places)) == pytest.approx(1)
    near_zero = places < 2
    # half of the bump at the left end lies within its margin only
    left = torch.trapezoid(density[near_zero], places[near_zero])
    assert 0.6 < float(left) < 0.85
    assert float(places[0]) == pytest.approx(-0.001)


# --- trace ------------------------------------------------------------------------------------------------------------


def test_trace_is_exact_for_a_diagonal_matrix() -> None:
    diagonal = torch.randn(50, dtype=torch.float64)
    trace = hutchinson_trace(lambda rows: rows * diagonal, zeros(50))
    assert trace.value == pytest.approx(float(diagonal.sum()))
    assert trace.standard_error == pytest.approx(0, abs=1e-12)
    assert trace.probes == 2


def test_trace_of_a_network_within_its_standard_error() -> None:
    model, data = small_net()
    exact = float(dense_hessian(model, data).trace())
    for at_once in (1, 16):
        operator = HessianOperator(model, functional.cross_entropy, data, at_once=at_once)
        trace = operator.trace(iters=200)
        assert trace.probes == 200
        assert abs(trace.value - exact) < 4 * trace.standard_error
        assert trace.standard_error < 0.2 * abs(exact)


def test_standard_error_is_that_of_the_estimate() -> None:
    matrix = symmetric([float(i) for i in range(20)])
    estimates = [
        hutchinson_trace(lambda rows: rows @ matrix, zeros(20), 50, generator=torch.Generator().manual_seed(seed))
        for seed in range(60)
    ]
    spread = torch.tensor([estimate.value for estimate in estimates]).std()
    expected = (2 * (matrix.square().sum() - matrix.diagonal().square().sum()) / 50) ** 0.5
    assert float(spread) == pytest.approx(float(expected), rel=0.3)
    assert estimates[0].standard_error == pytest.approx(float(expected), rel=0.3)


# --- criteria ---------------------------------------------------------------------------------------------------------


def test_criteria_of_a_positive_matrix() -> None:
    r_e, k_hn = criteria(*quadratic(symmetric([0.5, 1.0, 3.0, 10.0])).spectral_density())
    assert k_hn == 0
    assert r_e == pytest.approx(0.05)


def test_criteria_of_a_semi_definite_matrix_see_no_negative_curvature_in_rounding_errors() -> None:
    eigs = torch.tensor([-1e-16, 1.0, 2.0], dtype=torch.float64)
    assert criteria(eigs, torch.full((3,), 1 / 3, dtype=torch.float64)) == (0, 0)


@given(
    st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=3, max_size=10),
    st.floats(0.1, 2),
    st.floats(0.1, 10),
)
def test_criteria_do_not_depend_on_the_scale_of_the_loss(values: list[float], n: float, scale: float) -> None:
    eigs = torch.tensor([*values, 1.0], dtype=torch.float64)
    weights = torch.full_like(eigs, 1 / len(eigs))
    assert criteria(scale * eigs, weights, n) == pytest.approx(criteria(eigs, weights, n))


def test_criteria_are_those_of_the_formula_averaged_over_runs() -> None:
    eigs = torch.tensor([[-4.0, 1.0, 9.0], [-1.0, 2.0, 4.0]])
    weights = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    k_hn = (1 / (0.5**0.5 + 1.5) + 0.5**0.5 / (0.5**0.5 + 1)) / 2
    assert criteria(eigs, weights) == pytest.approx(((4 / 9 + 1 / 4) / 2, k_hn), rel=1e-5)


def test_criteria_without_positive_curvature_are_infinite() -> None:
    assert criteria(torch.tensor([-2.0, -1.0]), torch.tensor([0.5, 0.5])).k_hn == float("inf")


# --- progress, repeatability, sizes -----------------------------------------------------------------------------------


def test_progress_rises_to_one() -> None:
    operator = quadratic(symmetric([float(i) for i in range(1, 21)]))
    for work in (
        lambda observer: operator.top_eigs(2, 15, observer=observer),
        lambda observer: operator.top_eigs(2, 15, method="power", observer=observer),
        lambda observer: operator.spectral_density(5, runs=2, observer=observer),
        lambda observer: operator.trace(40, observer=observer),
    ):
        seen: list[float] = []
        work(seen.append)
        assert seen == sorted(seen)
        assert 0 < seen[0] < 1
        assert seen[-1] == 1


def test_results_repeat_and_follow_the_generator() -> None:
    operator = quadratic(symmetric([float(i) for i in range(1, 21)]))
    first, again = operator.spectral_density(4), operator.spectral_density(4)
    assert torch.equal(first.eigenvalues, again.eigenvalues)
    other = operator.spectral_density(4, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.eigenvalues, other.eigenvalues)


def test_residual_network_of_full_size() -> None:
    model = resnet_cifar(20).double()
    data = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1])
    operator = HessianOperator(model, functional.cross_entropy, data)
    assert operator.size == 269_722
    v = torch.randn(operator.size, dtype=torch.float64)
    v /= v.norm()
    step, shifted = 1e-7, copy.deepcopy(model)

    def gradient(sign: int) -> Tensor:
        with torch.no_grad():
            for name, piece in operator.split(v).items():
                shifted.get_parameter(name).copy_(model.get_parameter(name) + sign * step * piece)
        return HessianOperator(shifted, functional.cross_entropy, data).gradient()

    differences = (gradient(1) - gradient(-1)) / (2 * step)
    torch.testing.assert_close(operator.multiply(v), differences, rtol=1e-3, atol=1e-3 * float(differences.abs().max()))


# --- bad input --------------------------------------------------------------------------------------------------------

DATA = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(InputError, match=r"must have trainable parameters, got 0 parameters"):
        HessianOperator(nn.ReLU(), functional.cross_entropy, DATA)
    with pytest.raises(InputError, match=r"got 2 parameters, none with requires_grad"):
        HessianOperator(nn.Linear(3, 2).requires_grad_(False), functional.cross_entropy, DATA)


def test_a_loss_that_is_not_scalar_is_refused() -> None:
    operator = HessianOperator(nn.Linear(3, 2), nn.CrossEntropyLoss(reduction="none"), DATA)
    with pytest.raises(InputError, match=r"must be a scalar tensor, got \(4,\) of torch.float32"):
        operator.multiply(torch.zeros(8))
    gauss_newton = GaussNewtonOperator(nn.Linear(3, 2), lambda f, y: 1.0, DATA)
    with pytest.raises(InputError, match=r"must be a scalar tensor, got <class 'float'>"):
        gauss_newton.multiply(torch.zeros(8))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator])
def test_an_operation_that_cannot_be_differentiated_twice_is_named(kind: type[HessianOperator]) -> None:
    operator = kind(nn.Linear(3, 2), lambda f, y: Once.apply(f).sum(), DATA)
    with pytest.raises(InputError, match=r"must be twice differentiable, got a function marked as once_differentiable"):
        operator.multiply(torch.zeros(8))
    operator = kind(nn.Linear(3, 2), lambda f, y: torch.cdist(f, f, p=1).square().sum(), DATA)
    with pytest.raises(InputError, match=r"must be twice differentiable, got.*not: .*_cdist_backward"):
        operator.multiply(torch.ones(8))


def test_a_loss_without_connection_to_the_parameters_is_refused() -> None:
    operator = HessianOperator(nn.Linear(3, 2), lambda f, y: torch.tensor(1.0), DATA)
    with pytest.raises(InputError, match=r"loss must depend on the trainable parameters"):
        operator.multiply(torch.zeros(8))


def test_data_that_cannot_be_used_are_refused() -> None:
    model, loss = nn.Linear(3, 2), functional.cross_entropy
    with pytest.raises(InputError, match=r"inputs and as many targets.*\(4, 3\), \(3,\)"):
        HessianOperator(model, loss, (DATA[0], DATA[1][:3]))
    with pytest.raises(InputError, match=r"batches that can be gone through again, got <class 'list_iterator'>"):
        HessianOperator(model, loss, iter([DATA]))
    with pytest.raises(InputError, match=r"at least one batch, got none"):
        HessianOperator(model, loss, []).multiply(torch.zeros(8))
    with pytest.raises(InputError, match=r"batch must be at least 1, got 0"):
        HessianOperator(model, loss, DATA, batch=0)


def test_numbers_out_of_range_are_refused() -> None:
    operator = HessianOperator(nn.Linear(3, 2), functional.cross_entropy, DATA)
    with pytest.raises(InputError, match=r"k must be in \[1, 8\], got 9"):
        operator.top_eigs(9)
    with pytest.raises(InputError, match=r"unknown method 'lanzcos'; did you mean 'lanczos'"):
        operator.top_eigs(method="lanzcos")
    with pytest.raises(InputError, match=r"reorth must be 'full' or a number.*got -1"):
        operator.spectral_density(reorth=-1)
    with pytest.raises(InputError, match=r"iters must be at least 1, got 0"):
        operator.spectral_density(0)
    with pytest.raises(InputError, match=r"runs must be at least 1, got 0"):
        operator.spectral_density(runs=0)
    with pytest.raises(InputError, match=r"tol must be positive, got 0"):
        operator.trace(tol=0)
    with pytest.raises(InputError, match=r"dimension -1 of vectors must have size 8, got shape \(7,\)"):
        operator.multiply(torch.zeros(7))
    with pytest.raises(InputError, match=r"length of the start must be positive"):
        lanczos(lambda v: v, torch.zeros(3), 2)
    with pytest.raises(InputError, match=r"steps must be in \[1, 3\], got 4"):
        lanczos(lambda v: v, torch.ones(3), 4)
    with pytest.raises(InputError, match=r"n must be positive, got 0"):
        criteria(torch.ones(2), torch.ones(2), n=0)
    with pytest.raises(InputError, match=r"weights must have the shape \(2,\) of eigs, got shape \(3,\)"):
        criteria(torch.ones(2), torch.ones(3))
