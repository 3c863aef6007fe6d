"""Tests of ``netwright.analysis.landscape``."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from netwright.analysis._objective import SeparableMaxPool
from netwright.analysis.curvature import HessianOperator
from netwright.analysis.landscape import Directions, normalise, plane
from netwright.checks import InputError


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)
    ).double()


DATA = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
PICTURES = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.arange(9) % 3
LOSS = functional.cross_entropy


def moved(model: nn.Module, directions: Directions, a: float, b: float) -> nn.Module:
    """A copy of the model with its weights moved."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += a * directions.first[name] + b * directions.second[name]
    return model


def trained(model: nn.Module) -> float:
    """The loss of the model as it is."""
    with torch.no_grad():
        return float(LOSS(model(DATA[0]), DATA[1]))


# --- planes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [None, 1, 5])
@pytest.mark.parametrize("batch", [None, 4])
def test_losses_are_those_of_copies_with_moved_weights(at_once: int | None, batch: int | None) -> None:
    model = mlp()
    directions = Directions.random(model, distribution="normal")
    result = plane(model, LOSS, DATA, directions, steps=4, distance=2.0, batch=batch, at_once=at_once)
    assert result.first.tolist() == result.second.tolist() == [-1.0, -0.5, 0.0, 0.5]
    for i, a in enumerate(result.first.tolist()):
        for j, b in enumerate(result.second.tolist()):
            expected = LOSS(moved(model, directions, a, b)(DATA[0]), DATA[1]).detach()
            assert float(result.loss[i, j]) == pytest.approx(float(expected))


@pytest.mark.filterwarnings("ignore:planes along random axes")
@pytest.mark.parametrize("at_once", [1, 3])
def test_networks_with_convolutions_and_batches_one_by_one(at_once: int) -> None:
    model = conv_net()
    directions = Directions.random(model)
    x, y = PICTURES
    whole = plane(model, LOSS, PICTURES, directions, steps=2, at_once=at_once)
    stream = plane(model, LOSS, [(x[:2], y[:2]), (x[2:], y[2:])], directions, steps=2, at_once=at_once)
    torch.testing.assert_close(stream.loss, whole.loss)
    expected = LOSS(moved(model, directions, -0.5, 0.0)(x), y).detach()
    assert float(whole.loss[0, 1]) == pytest.approx(float(expected))


def test_quadratic_loss_gives_a_parabola_with_the_eigenvalues_as_curvature() -> None:
    """For a linear model and squared error the plane along Hessian axes is exact."""
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    model = nn.Linear(4, 1).double()
    operator = HessianOperator(model, functional.mse_loss, (x, y))
    pairs = operator.top_eigs(2, tol=1e-9)
    result = plane(model, functional.mse_loss, (x, y), Directions.hessian(operator, pairs), steps=6)
    a, b = result.first.unsqueeze(1), result.second.unsqueeze(0)
    gradient = pairs.vectors @ operator.gradient()
    expected = (
        operator.loss() + a * gradient[0] + b * gradient[1] + 0.5 * (pairs.values[0] * a**2 + pairs.values[1] * b**2)
    )
    torch.testing.assert_close(result.loss, expected)


def test_centre_is_the_trained_model() -> None:
    model = mlp()
    for directions in (Directions.random(model), Directions.hessian(HessianOperator(model, LOSS, DATA))):
        result = plane(model, LOSS, DATA, directions, steps=6, distance=3.0)
        assert float(result.first[3]) == float(result.second[3]) == 0
        assert float(result.loss[3, 3]) == pytest.approx(trained(model))


def adam_directions(model: nn.Module) -> tuple[Directions, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        LOSS(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
    model.zero_grad()
    return Directions.adam(model, optimizer), optimizer


def test_adam_update_plane_follows_the_rule() -> None:
    model = mlp()
    directions, _ = adam_directions(model)
    result = plane(model, LOSS, DATA, directions, steps=4, mode="adam_update", at_once=1)
    assert result.first.tolist() == [-1.0, -0.5, 0.0, 0.5]
    assert result.second.tolist() == pytest.approx([0.1, 0.6, 1.1, 1.6])
    step = {name: 1e-3 * directions.first[name] / (directions.second[name].sqrt() + 1e-6) for name in directions.first}
    zero = {name: torch.zeros_like(tensor) for name, tensor in step.items()}
    there = moved(model, Directions(step, zero), -0.5 / math.sqrt(1.6), 0.0)
    assert float(result.loss[1, 3]) == pytest.approx(trained(there))
    assert result.loss[2].tolist() == pytest.approx([trained(model)] * 4)
    stacked = plane(model, LOSS, DATA, directions, steps=4, mode="adam_update", at_once=7)
    torch.testing.assert_close(stacked.loss, result.loss)


def test_cap_and_losses_that_are_no_numbers() -> None:
    model = mlp()
    directions = Directions.random(model)
    free = plane(model, LOSS, DATA, directions, steps=4, distance=50.0)
    capped = plane(model, LOSS, DATA, directions, steps=4, distance=50.0, cap=2.0)
    torch.testing.assert_close(capped.loss, free.loss.clamp(max=2.0))

    def undefined(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.log(outputs.sum())

    assert plane(model, undefined, DATA, directions, steps=4, distance=50.0).loss.isnan().any()
    assert float(plane(model, undefined, DATA, directions, steps=4, distance=50.0, cap=2.0).loss.max()) == 2


@pytest.mark.parametrize(
    ("freeze", "frozen"), [(1, ["0.bias", "2.weight", "2.bias"]), (-3, "0.weight 0.bias 2.weight")]
)
def test_frozen_tensors_do_not_move(freeze: int, frozen: list[str] | str) -> None:
    model = mlp()
    directions = Directions.random(model)
    result = plane(model, LOSS, DATA, directions, steps=2, freeze=freeze)
    first, second = (
        {name: torch.zeros_like(t) if name in frozen else t for name, t in axis.items()}
        for axis in (directions.first, directions.second)
    )
    torch.testing.assert_close(result.loss, plane(model, LOSS, DATA, Directions(first, second), steps=2).loss)
    assert result.loss.unique().numel() == 4


def test_training_mode_has_the_same_dropout_at_every_point() -> None:
    model = conv_net()
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    losses = plane(model, LOSS, PICTURES, Directions(zero, zero), steps=4, training=True).loss
    assert losses.unique().numel() == 1
    assert not torch.allclose(losses, plane(model, LOSS, PICTURES, Directions(zero, zero), steps=4).loss)


def test_nothing_about_the_model_changes() -> None:
    model = conv_net()
    model[4].eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    versions = [p._version for p in model.parameters()]
    directions = Directions.random(model).normalised(model, "filter")
    for training in (False, True):
        with pytest.warns(UserWarning, match="random axes can mislead"):
            plane(model, LOSS, PICTURES, directions, steps=2, training=training)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [p._version for p in model.parameters()] == versions
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_batch_normalisation_warns_for_random_axes_only() -> None:
    model = conv_net()
    with pytest.warns(UserWarning, match="Hessian axes are better"):
        plane(model, LOSS, PICTURES, Directions.random(model), steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plane(model, LOSS, PICTURES, Directions.hessian(HessianOperator(model, LOSS, PICTURES)), steps=2)
        plane(mlp(), LOSS, DATA, Directions.random(mlp()), steps=2)


def test_progress_rises_to_one() -> None:
    model = mlp()
    for data in (DATA, [DATA, DATA]):
        seen: list[float] = []
        plane(model, LOSS, data, Directions.random(model), steps=4, batch=5, at_once=3, observer=seen.append)
        assert seen == sorted(seen)
        assert 0 < seen[0] < 0.2
        assert seen[-1] == 1


def test_hessian_axes_are_steeper_than_random_ones_on_a_trained_network() -> None:
    y = torch.arange(60) % 3
    x = torch.randn(3, 10)[y] + 0.5 * torch.randn(60, 10)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
    for _ in range(100):
        model.zero_grad()
        LOSS(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    operator = HessianOperator(model, LOSS, (x, y))

    def curvature(directions: Directions) -> float:
        loss = plane(model, LOSS, (x, y), directions, steps=4, distance=0.4).loss
        return float(loss[1, 2] + loss[3, 2] + loss[2, 1] + loss[2, 3] - 4 * loss[2, 2])

    random = Directions.random(model, distribution="normal")
    length = math.sqrt(sum(float(t.square().sum()) for t in random.first.values()))
    unit = Directions(*({n: t / length for n, t in axis.items()} for axis in (random.first, random.second)))
    assert curvature(Directions.hessian(operator)) > 3 * abs(curvature(unit))


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["same", None, 1, 2])
)
def test_max_pooling_of_planes_is_that_of_torch(height: int, width: int, k: int, j: int, stride: object) -> None:
    pictures = torch.randn(2, 3, height + 4, width + 4)
    options = {"kernel_size": (k, j), "stride": (k, j) if stride == "same" else stride}
    with SeparableMaxPool():
        mine = functional.max_pool2d(pictures, **options)
        module = nn.MaxPool2d(2, padding=1, ceil_mode=True)(pictures)
    assert torch.equal(mine, functional.max_pool2d(pictures, **options))
    assert torch.equal(module, nn.MaxPool2d(2, padding=1, ceil_mode=True)(pictures))


def test_max_pooling_of_planes_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("torch's own pooling was called")

    pictures = torch.randn(2, 1, 6, 6)
    monkeypatch.setattr(torch, "max_pool2d", refuse)
    with SeparableMaxPool():
        assert nn.MaxPool2d(2)(pictures).shape == (2, 1, 3, 3)
        assert functional.max_pool2d(pictures, 3).shape == (2, 1, 2, 2)
        with pytest.raises(AssertionError, match="own pooling"):
            nn.MaxPool2d(2, stride=1)(pictures)


def test_too_small_pictures_fail_as_ever() -> None:
    with SeparableMaxPool(), pytest.raises(RuntimeError, match="Output size is too small"):
        functional.max_pool2d(torch.randn(1, 1, 1, 1), 2)


# --- directions -------------------------------------------------------------------------------------------------------


def test_random_directions_are_uniform_or_normal_and_orthogonal() -> None:
    model = nn.Linear(300, 200)
    for distribution, low, std in (("uniform", 0.0, 12**-0.5), ("normal", -10.0, 1.0)):
        directions = Directions.random(model, distribution=distribution)
        first, second = (
            torch.cat([t.flatten() for t in axis.values()]).double() for axis in (directions.first, directions.second)
        )
        assert abs(float(torch.cosine_similarity(first, second, dim=0))) < 1e-5
        assert float(first.min()) >= low
        assert float(first.std()) == pytest.approx(std, rel=0.02)
    assert directions.axes == "random"
    again = Directions.random(model, distribution="normal")
    assert torch.equal(again.first["weight"], directions.first["weight"])
    other = Directions.random(model, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other.first["weight"], directions.first["weight"])


def test_adam_directions_are_copies_of_its_moments() -> None:
    model = mlp()
    directions, optimizer = adam_directions(model)
    state = optimizer.state[model[0].weight]
    assert torch.equal(directions.first["0.weight"], state["exp_avg"])
    assert torch.equal(directions.second["0.weight"], state["exp_avg_sq"])
    state["exp_avg"].zero_()
    assert directions.first["0.weight"].count_nonzero() > 0


def test_parameters_that_adam_has_not_seen_do_not_move() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model[2].parameters())
    LOSS(model(DATA[0]), DATA[1]).backward()
    optimizer.step()
    directions = Directions.adam(model, optimizer)
    assert directions.first["0.weight"].count_nonzero() == 0
    assert directions.first["2.weight"].count_nonzero() > 0


def test_hessian_directions_are_the_top_eigenvectors() -> None:
    model = mlp()
    operator = HessianOperator(model, LOSS, DATA)
    pairs = operator.top_eigs(2, tol=1e-6)
    directions = Directions.hessian(operator, tol=1e-6)
    for axis, vector in zip((directions.first, directions.second), pairs.vectors, strict=True):
        torch.testing.assert_close(torch.cat([t.flatten() for t in axis.values()]), vector)


# --- normalisation ----------------------------------------------------------------------------------------------------

WEIGHTS = {
    "conv": torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "linear": torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "bias": torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    "scale": torch.tensor(2.0, dtype=torch.float64),
}
DIRECTION = {
    name: torch.randn(t.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for name, t in WEIGHTS.items()
}


def blocks(tensors: dict[str, Tensor], mode: str) -> list[Tensor]:
    """What is scaled together."""
    if mode == "model":
        return [torch.cat([t.flatten() for t in tensors.values()])]
    if mode == "layer":
        return list(tensors.values())
    return [b for t in tensors.values() for b in (t if t.ndim > 1 else [t])]


@pytest.mark.parametrize("mode", ["layer", "model", "filter"])
@pytest.mark.parametrize("order", [1, 2])
def test_blocks_get_the_norm_of_the_weights_and_keep_their_direction(mode: str, order: int) -> None:
    scaled = normalise(DIRECTION, WEIGHTS, mode, order)
    for new, old, weight in zip(*(blocks(t, mode) for t in (scaled, DIRECTION, WEIGHTS)), strict=True):
        expected = old * (weight.norm(order) / old.norm(order))
        torch.testing.assert_close(new, expected)


def test_weight_mode_multiplies_and_none_copies() -> None:
    by_weight = normalise(DIRECTION, WEIGHTS, "weight")
    same = normalise(DIRECTION, WEIGHTS)
    for name, tensor in DIRECTION.items():
        torch.testing.assert_close(by_weight[name], tensor * WEIGHTS[name])
        assert torch.equal(same[name], tensor)
        assert same[name] is not tensor


@given(st.floats(0.01, 100), st.sampled_from(["layer", "model", "filter"]), st.sampled_from([1, 2]))
def test_the_length_of_a_direction_does_not_matter(scale: float, mode: str, order: int) -> None:
    longer = {name: scale * tensor for name, tensor in DIRECTION.items()}
    once = normalise(DIRECTION, WEIGHTS, mode, order)
    torch.testing.assert_close(normalise(longer, WEIGHTS, mode, order), once)
    torch.testing.assert_close(normalise(once, WEIGHTS, mode, order), once)


def test_zero_filters_stay_zero() -> None:
    direction = {"w": torch.tensor([[0.0, 0.0], [1.0, 0.0]])}
    weights = {"w": torch.tensor([[1.0, 1.0], [3.0, 4.0]])}
    assert normalise(direction, weights, "filter")["w"].tolist() == [[0, 0], [5, 0]]


def test_plane_of_a_rescaled_relu_network_is_the_same_with_filter_normalisation() -> None:
    """What filter normalisation is for: weights a times larger and a times smaller make the same function."""
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        rescaled[0].weight *= 10
        rescaled[2].weight /= 10
    raw = Directions.random(model, distribution="normal")
    planes = [plane(m, LOSS, DATA, raw.normalised(m, "filter"), steps=4).loss for m in (model, rescaled)]
    torch.testing.assert_close(planes[0], planes[1])
    planes = [plane(m, LOSS, DATA, raw, steps=4).loss for m in (model, rescaled)]
    assert not torch.allclose(planes[0], planes[1], rtol=0.1)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_odd_grids_miss_their_centre() -> None:
    with pytest.raises(InputError, match=r"steps must be even.*trained weights.*got 41"):
        plane(mlp(), LOSS, DATA, Directions.random(mlp()), steps=41)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(4, 3).requires_grad_(False)
    for call in (
        lambda: Directions.random(model),
        lambda: Directions.adam(model, torch.optim.Adam([torch.zeros(1)])),
        lambda: plane(model, LOSS, DATA, Directions({}, {})),
    ):
        with pytest.raises(InputError, match=r"must have trainable parameters, got 2 parameters, none with"):
            call()


def test_a_loss_that_is_not_scalar_is_refused() -> None:
    model = mlp()
    with pytest.raises(InputError, match=r"must be a scalar tensor, got \(9,\)"):
        plane(model, nn.CrossEntropyLoss(reduction="none"), DATA, Directions.random(model), steps=2)


def test_adam_axes_need_the_state_of_adam() -> None:
    model = mlp()
    with pytest.raises(InputError, match=r"has made a step on this model, got Adam with 0 parameters in its state"):
        Directions.adam(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(InputError, match=r"first and second moments.*got SGD"):
        Directions.adam(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(InputError, match=r"an Adam update needs Adam axes, got random axes"):
        plane(model, LOSS, DATA, Directions.random(model), mode="adam_update")
    negative = {name: -torch.ones_like(p) for name, p in model.named_parameters()}
    with pytest.raises(InputError, match=r"second moments must not be negative"):
        plane(model, LOSS, DATA, Directions(negative, negative), mode="adam_update")


@pytest.mark.parametrize("freeze", [0, 4, -4, 9])
def test_freeze_out_of_range_is_refused(freeze: int) -> None:
    model = mlp()
    with pytest.raises(InputError, match=rf"freeze must be from 1 to 3, or the negative of that, got {freeze}"):
        plane(model, LOSS, DATA, Directions.random(model), freeze=freeze)


def test_other_bad_input_is_refused() -> None:
    model = mlp()
    axes = Directions.random(model)
    with pytest.raises(InputError, match=r"order must be 1 or 2, got 3"):
        axes.normalised(model, "filter", 3)
    with pytest.raises(InputError, match=r"unknown normalisation 'filtre'; did you mean 'filter'"):
        axes.normalised(model, "filtre")
    with pytest.raises(InputError, match=r"'0.bias' should be \(7,\), got \(5,\)"):
        axes.normalised(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)), "filter")
    with pytest.raises(InputError, match=r"'0.bias' should be missing, got \(5,\)"):
        plane(nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3)), LOSS, DATA, axes)
    with pytest.raises(InputError, match=r"unknown mode 'adam'; did you mean|unknown mode 'adam'; known are"):
        plane(model, LOSS, DATA, axes, mode="adam")
    with pytest.raises(InputError, match=r"distance must be positive, got 0"):
        plane(model, LOSS, DATA, axes, distance=0)
    with pytest.raises(InputError, match=r"cap must be positive, got -1"):
        plane(model, LOSS, DATA, axes, cap=-1)
    with pytest.raises(InputError, match=r"steps must be at least 2, got 0"):
        plane(model, LOSS, DATA, axes, steps=0)
    with pytest.raises(InputError, match=r"at_once must be at least 1, got 0"):
        plane(model, LOSS, DATA, axes, at_once=0)
    with pytest.raises(InputError, match=r"at_once must be 1 in training mode.*got 4"):
        plane(model, LOSS, DATA, axes, at_once=4, training=True)
    with pytest.raises(InputError, match=r"unknown distribution 'gauss'"):
        Directions.random(model, distribution="gauss")
    operator = HessianOperator(model, LOSS, DATA)
    with pytest.raises(InputError, match=r"Hessian axes need two eigenpairs, got 1"):
        Directions.hessian(operator, operator.top_eigs(1))
