"""Tests of the Stiefel, SPD and Euclidean updates of ``netwright.training.riemannian``."""

import pytest
import torch
from torch import Tensor, nn

from netwright.claims.spd_gbw_norm import _Watched
from netwright.data import Batch, load
from netwright.layers.spd import airm_distance, spd_log
from netwright.layers.spd_layers import BiMap, CovPool
from netwright.layers.spd_norm import GBWBatchNorm
from netwright.models.signals.spdnet import SPDNet
from netwright.training import Backprop, Budget, fit
from netwright.training.riemannian import MixedRiemannianSGD, manifold_groups


def test_plain_parameters_move_as_with_torch() -> None:
    weights = [nn.Parameter(torch.arange(4.0)) for _ in range(2)]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    for weight, kind in zip(weights, (MixedRiemannianSGD, torch.optim.SGD), strict=True):
        optimizer = kind([weight], **settings)
        for _ in range(4):
            optimizer.zero_grad()
            weight.square().sum().sin().backward()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])


def minimise(point: Tensor, manifold: str, loss: object, lr: float, momentum: float, steps: int) -> list[Tensor]:
    parameter = nn.Parameter(point.clone())
    optimizer = MixedRiemannianSGD([{"params": [parameter], "manifold": manifold}], lr=lr, momentum=momentum)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_stiefel_finds_the_leading_eigenvectors_and_stays_orthonormal(momentum: float) -> None:
    a = torch.diag(torch.tensor([5.0, 4.0, 1.0, 0.5], dtype=torch.float64))
    start, _ = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64))
    path = minimise(
        start.view(1, 1, 4, 2), "stiefel", lambda w: -(w.mT @ a @ w).diagonal(0, -2, -1).sum(), 0.05, momentum, 200
    )
    for point in path:
        torch.testing.assert_close(point.mT @ point, torch.eye(2, dtype=torch.float64).view(1, 1, 2, 2))
    assert (path[-1].mT @ a @ path[-1])[0, 0].trace().item() == pytest.approx(9, abs=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_spd_reaches_a_far_matrix_and_never_leaves_the_manifold(momentum: float) -> None:
    target = torch.diag(torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64))
    start = torch.eye(3, dtype=torch.float64)
    path = minimise(start, "spd", lambda x: airm_distance(target, x).square() / 2, 0.3, momentum, 60)
    assert min(torch.linalg.eigvalsh(point).min() for point in path) > 0
    assert airm_distance(target, path[-1]).item() < 1e-5


def test_spd_step_is_the_affine_invariant_geodesic() -> None:
    """Of ½ d² to a target the gradient is −Log_X(target): one step with rate t goes the fraction t of the way."""
    target, start = (torch.diag(torch.tensor(v, dtype=torch.float64)) for v in ([2.0, 8.0], [1.0, 1.0]))
    (point,) = minimise(start, "spd", lambda x: airm_distance(target, x).square() / 2, 0.25, 0.0, 1)
    torch.testing.assert_close(spd_log(point), 0.25 * spd_log(target))


def test_step_does_not_depend_on_the_basis_with_momentum() -> None:
    """A congruence X ↦ A X Aᵀ is an isometry: the path of the moved problem is the moved path, its velocity too."""
    a = torch.randn(3, 3, dtype=torch.float64) + 2 * torch.eye(3, dtype=torch.float64)
    b = torch.randn(3, 6, dtype=torch.float64)
    target, start = b @ b.T, torch.eye(3, dtype=torch.float64)
    plain = minimise(start, "spd", lambda x: airm_distance(target, x).square(), 0.05, 0.9, 8)
    moved = minimise(a @ a.T, "spd", lambda x: airm_distance(a @ target @ a.T, x).square(), 0.05, 0.9, 8)
    torch.testing.assert_close(moved[-1], a @ plain[-1] @ a.T, rtol=1e-6, atol=1e-8)


def test_groups_name_each_manifold_once_and_leave_frozen_parameters_out() -> None:
    model = SPDNet((6, 4), 2, GBWBatchNorm)
    shared = model.features[0]
    model.again = shared
    model.classifier.bias.requires_grad_(False)
    groups = {group["manifold"]: group["params"] for group in manifold_groups(model)}
    norm = model.features[1]
    assert set(groups) == {"stiefel", "spd", "euclidean"}
    assert groups["stiefel"] == [shared.weight]
    assert {id(p) for p in groups["spd"]} == {id(norm.weight), id(norm.metric)}
    assert {id(p) for p in groups["euclidean"]} == {id(norm.scale), id(model.classifier.weight)}
    assert [group["manifold"] for group in manifold_groups(SPDNet((6, 4), 2, free=True))] == ["euclidean"]


def test_a_network_learns_through_fit_and_its_state_goes_on() -> None:
    data = load("digits").map(lambda x: CovPool(1e-2)(torch.cat([x, x.cumsum(2), x.cumsum(3), x.roll(1, 3)], 1)))
    model = SPDNet((4, 3), 10, GBWBatchNorm)
    optimizer = MixedRiemannianSGD(manifold_groups(model), lr=0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    history = fit(model, data, Budget(steps=20), Backprop(model, optimizer, scheduler=scheduler), evaluate_every=10)
    assert history.records[-1]["loss"] < history.records[0]["loss"]
    weight = model.features[0].weight
    torch.testing.assert_close(weight.mT @ weight, torch.eye(3, dtype=torch.float64).view(1, 1, 3, 3))
    assert torch.linalg.eigvalsh(model.features[1].metric).min() > 0
    assert not torch.equal(model.features[1].metric, torch.eye(3, dtype=torch.float64).unsqueeze(0))
    again = MixedRiemannianSGD(manifold_groups(model), lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[1]["manifold"] == optimizer.param_groups[1]["manifold"]
    torch.testing.assert_close(again.state[weight]["velocity"], optimizer.state[weight]["velocity"])


def test_single_precision_parameters_keep_their_type() -> None:
    layer = BiMap(4, 2, dtype=torch.float32)
    optimizer = MixedRiemannianSGD(manifold_groups(layer), lr=0.1, momentum=0.9)
    for _ in range(3):
        layer(torch.diag(torch.arange(1.0, 5)).view(1, 1, 4, 4)).sum().backward()
        optimizer.step()
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight.mT @ layer.weight, torch.eye(2).view(1, 1, 2, 2), atol=1e-6, rtol=0)


def test_bad_input() -> None:
    weight = nn.Parameter(torch.eye(2))
    with pytest.raises(ValueError, match="unknown manifold 'stifel'; did you mean 'stiefel'"):
        MixedRiemannianSGD([{"params": [weight], "manifold": "stifel"}], lr=0.1)
    with pytest.raises(ValueError, match="weight decay pulls off a curved manifold"):
        MixedRiemannianSGD([{"params": [weight], "manifold": "spd"}], lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="lr must be positive"):
        MixedRiemannianSGD([weight], lr=0)
    layer = nn.Linear(2, 2)
    layer.manifolds = {"weight": "sphere"}
    with pytest.raises(ValueError, match="unknown manifold 'sphere'"):
        manifold_groups(layer)


def test_claim_counts_a_gradient_on_which_the_update_breaks_down() -> None:
    model = SPDNet((4, 3), 2, GBWBatchNorm)
    rule = _Watched(model, 1e-2)
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: grad * torch.nan)
    a = torch.randn(6, 1, 4, 8, dtype=torch.float64)
    with pytest.raises(torch.linalg.LinAlgError):
        rule.step(Batch(a @ a.mT, torch.arange(6) % 2))
    assert rule.infinite == 1
