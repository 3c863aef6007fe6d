"""Tests of ``netwright.layers.spd_norm``."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.autograd import gradcheck

from netwright.cost import count_params
from netwright.layers.spd import (
    airm_mean,
    bw_distance,
    bw_exp,
    bw_log,
    bw_mean,
    bw_transport_commuting,
    gbw_geodesic,
    gbw_mean,
    spd_log,
    spd_power,
    spd_roots,
)
from netwright.layers.spd_norm import AIRMBatchNorm, GBWBatchNorm, LEMBatchNorm

LAYERS = [GBWBatchNorm, AIRMBatchNorm, LEMBatchNorm]
Layer = GBWBatchNorm | AIRMBatchNorm | LEMBatchNorm
layers = pytest.mark.parametrize("kind", LAYERS)


def batch(samples: int = 8, channels: int = 1, n: int = 4, spread: float = 0.3, seed: int = 0) -> Tensor:
    """Matrices around one that is not the identity."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, channels, n, n, dtype=torch.float64, generator=generator)
    center = torch.diag(torch.linspace(0.5, 2, n, dtype=torch.float64))
    return torch.matrix_exp(spread * (a + a.mT) / 2) @ center @ torch.matrix_exp(spread * (a + a.mT) / 2)


def randomise_(layer: Layer, size: float = 0.2) -> Layer:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name == "scale":
                parameter.uniform_(0.2, 0.5)
            else:
                v = size * torch.randn_like(parameter)
                parameter.copy_((v + v.mT) / 2 if layer.free else torch.matrix_exp((v + v.mT) / 2))
    return layer


def published(layer: GBWBatchNorm, x: Tensor) -> Tensor:
    """Algorithm 1 of the paper step by step, each with the map of its own, one matrix at a time."""
    theta, metric = layer.power, layer.metric[0].detach()
    root, inverse = spd_roots(metric)
    eye = torch.eye(len(metric), dtype=torch.float64)
    y = [inverse @ spd_power(one, theta) @ inverse for one in x[:, 0]]
    weight = inverse @ spd_power(layer.weight[0].detach(), theta) @ inverse
    mean = bw_mean(torch.stack(y), 1)
    variance = sum(bw_distance(mean, one).square() for one in y) / len(y) / theta**2
    if layer.var_about == "identity":
        variance = sum(bw_distance(eye, one).square() for one in y) / len(y) / theta**2
    out = []
    for one in y:
        centred = bw_exp(eye, bw_transport_commuting(bw_log(mean, one), mean, eye))
        scaled = bw_exp(eye, layer.scale.item() / math.sqrt(variance + layer.eps) * bw_log(eye, centred))
        biased = bw_exp(weight, bw_transport_commuting(bw_log(eye, scaled), eye, weight))
        out.append(spd_power(root @ biased @ root, 1 / theta))
    return torch.stack(out).unsqueeze(1)


@pytest.mark.parametrize("power", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("var_about", ["mean", "identity"])
def test_layer_is_the_published_algorithm(power: float, var_about: str) -> None:
    layer = randomise_(GBWBatchNorm(4, power, var_about=var_about))
    x = batch(spread=0.1)
    torch.testing.assert_close(layer(x), published(layer, x))


@layers
def test_normalised_batch_has_the_bias_as_its_mean_and_the_scale_as_its_deviation(kind: type[Layer]) -> None:
    layer = kind(4, eps=1e-12)
    with torch.no_grad():
        layer.scale.fill_(0.05)
    x = batch(32, spread=0.2)
    out = layer(x)[:, 0]
    eye = torch.eye(4, dtype=torch.float64)
    means = {GBWBatchNorm: bw_mean, AIRMBatchNorm: airm_mean, LEMBatchNorm: lambda x: spd_log(x).mean(0).matrix_exp()}
    torch.testing.assert_close(means[kind](out), eye, atol=2e-3, rtol=0)  # one iteration towards the mean
    distance = bw_distance(eye, out) if kind is GBWBatchNorm else spd_log(out).norm(dim=(-2, -1))
    torch.testing.assert_close(distance.square().mean().sqrt().item(), 0.05, rtol=0.02, atol=0)
    with torch.no_grad():
        layer.weight.copy_(batch(1)[0])
    torch.testing.assert_close(means[kind](layer(x)[:, 0]), layer.weight[0].detach(), atol=5e-3, rtol=0)


@layers
def test_eval_with_the_statistics_of_a_batch_is_training_on_it(kind: type[Layer]) -> None:
    layer = randomise_(kind(4, momentum=1.0) if kind is not GBWBatchNorm else kind(4, 0.5, momentum=1.0))
    x = batch(spread=0.3)
    expected = layer(x)
    torch.testing.assert_close(layer.eval()(x), expected)
    torch.testing.assert_close(layer(x[:1]), expected[:1])  # one sample at a time


def test_running_mean_moves_along_the_geodesic_of_the_metric_in_the_input_space() -> None:
    layer = randomise_(GBWBatchNorm(4, momentum=0.3))
    x = batch()
    mean = gbw_mean(x[:, 0], layer.metric[0].detach(), 1)
    expected = gbw_geodesic(torch.eye(4, dtype=torch.float64), mean, 0.3, layer.metric[0].detach())
    layer(x)
    torch.testing.assert_close(layer.running_mean[0], expected)
    assert layer.running_var.item() != 1


@layers
def test_channels_share_statistics_or_have_their_own(kind: type[Layer]) -> None:
    x = batch(6, channels=3)
    shared = kind(4)
    torch.testing.assert_close(shared(x).flatten(0, 1), shared(x.flatten(0, 1).unsqueeze(1)).squeeze(1))
    own = randomise_(kind(4, channels=3))
    single = kind(4)
    single.load_state_dict({name: value[1:2] for name, value in own.state_dict().items()})
    torch.testing.assert_close(own(x)[:, 1:2], single(x[:, 1:2]))


@layers
@given(seed=st.integers(0, 1000), condition=st.floats(0, 8), power=st.sampled_from([1.0, 0.5, 2.0]))
def test_output_is_spd_and_gradients_finite_whatever_the_condition(
    kind: type[Layer], seed: int, condition: float, power: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 10 ** torch.linspace(-condition / 2, condition / 2, 4, dtype=torch.float64)
    a = torch.randn(5, 1, 4, 8, dtype=torch.float64, generator=generator)
    x = (values.sqrt().unsqueeze(-1) * (a @ a.mT / 8) * values.sqrt()).requires_grad_()
    layer = kind(4, power) if kind is GBWBatchNorm else kind(4)
    out = layer(x)
    assert torch.linalg.eigvalsh(out).min() > -1e-12 * out.abs().max()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_what_leaves_the_domain_of_the_exponential_map_stays_in_order() -> None:
    """Matrices of one number: the released formula (1 + v/2)² puts those far below the mean above it."""
    x = torch.tensor([0.01, 1.0, 30.0, 60.0, 100.0], dtype=torch.float64).view(-1, 1, 1, 1)
    layer = GBWBatchNorm(1)
    with torch.no_grad():
        layer.scale.fill_(3)
    out = layer(x).flatten().tolist()
    assert out == sorted(out)
    assert out[0] == pytest.approx(1e-6)


@layers
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("detach", [False, True])
def test_gradients(kind: type[Layer], free: bool, detach: bool) -> None:
    options = {"power": 0.6} if kind is GBWBatchNorm else {}
    layer = randomise_(kind(3, free=free, detach_statistics=detach, **options))
    x = batch(3, n=3, spread=0.2).requires_grad_()
    names = list(dict(layer.named_parameters()))
    parameters = tuple(layer.parameters())
    if detach:  # the exact gradient is that of given statistics
        layer(x)
        layer.eval()

    def function(x: Tensor, *given: Tensor) -> Tensor:
        if free:
            return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), x)
        points = {name: 0.5 * (p + p.mT) if name != "scale" else p for name, p in zip(names, given, strict=True)}
        return torch.func.functional_call(layer, points, x)

    assert gradcheck(function, (x, *parameters), fast_mode=True)


def test_gradients_at_the_start_where_all_eigenvalues_of_the_weight_and_the_metric_are_equal() -> None:
    layer = GBWBatchNorm(3)
    x = batch(4, n=3, spread=0.1)
    layer(x)
    layer.eval()

    def function(weight: Tensor, metric: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "metric": metric}, x)

    weight, metric = layer.weight.detach().clone(), layer.metric.detach().clone()
    directions = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    directions = directions + directions.mT
    weight.requires_grad_()
    metric.requires_grad_()
    target = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    grads = torch.autograd.grad((function(weight, metric) * target).sum(), (weight, metric))
    for index, grad in enumerate(grads):
        step = [1e-6 * directions[k] if k == index else 0.0 for k in range(2)]
        with torch.no_grad():
            up = function(weight + step[0], metric + step[1])
            down = function(weight - step[0], metric - step[1])
        expected = ((up - down) * target).sum() / 2e-6
        torch.testing.assert_close((grad * directions[index]).sum(), expected, rtol=1e-6, atol=1e-8)


@layers
def test_state_types_and_devices(kind: type[Layer]) -> None:
    layer = randomise_(kind(4))
    x = batch()
    layer(x)
    other = kind(4)
    other.load_state_dict(load(save(layer.state_dict())))
    layer.eval()
    torch.testing.assert_close(other.eval()(x), layer(x), rtol=0, atol=0)
    single = copy.deepcopy(layer).float()
    assert (single.weight.dtype, single.running_var.dtype, single.running_mean.dtype) == (
        torch.float32,
        torch.float32,
        torch.float64,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = single.train()(x.float())
        out.sum().backward()
    assert out.dtype == torch.float32
    assert single.weight.grad.dtype == torch.float32
    torch.testing.assert_close(single.eval()(x), layer.train().eval()(x), rtol=0.2, atol=0.2)
    meta = kind(4, device="meta")
    assert meta(torch.empty(2, 1, 4, 4, device="meta")).shape == (2, 1, 4, 4)


def test_compilation() -> None:
    layer, other = GBWBatchNorm(4), GBWBatchNorm(4)
    x = batch()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), other(x))
    torch.testing.assert_close(layer.running_mean, other.running_mean)


def test_published_counts() -> None:
    with torch.device("meta"):
        assert count_params(GBWBatchNorm(12)) == 2 * 144 + 1
        assert count_params(GBWBatchNorm(12, learn_metric=False)) == 144 + 1
        assert count_params(AIRMBatchNorm(12)) == count_params(LEMBatchNorm(12)) == 144 + 1


@layers
def test_bad_input(kind: type[Layer]) -> None:
    layer, x = kind(4), batch()
    skew = x.clone()
    skew[0, 0, 0, 1] += 0.01
    with pytest.raises(ValueError, match="input must be symmetric and finite"):
        layer(skew)
    negative = x.clone()
    negative[3, 0] = torch.diag(torch.tensor([1.0, 2.0, 3.0, -0.125]))
    with pytest.raises(ValueError, match=r"input must be positive definite.*got an eigenvalue of -0\.125"):
        layer(negative)
    with pytest.raises(ValueError, match=r"input must be matrices \(…, 4, 4\)"):
        layer(batch(n=3))
    with pytest.raises(ValueError, match=r"at least 2 matrices, got input of shape \(1, 1, 4, 4\)"):
        layer(x[:1])
    with pytest.raises(ValueError, match=r"input must have shape \(batch, channels, n, n\)"):
        layer(x[0])
    with pytest.raises(ValueError, match="dimension 1 of input must have size 2"):
        kind(4, channels=2)(x)
    with pytest.raises(ValueError, match="eps must be positive"):
        kind(4, eps=0)


@layers
def test_weights_that_an_ordinary_optimiser_took_off_the_manifold_are_refused(kind: type[Layer]) -> None:
    layer = kind(4)
    with torch.no_grad():
        layer.weight.sub_(1.5 * torch.eye(4))
    with pytest.raises(ValueError, match=r"train them with MixedRiemannianSGD.*got an eigenvalue of -0\.5"):
        layer(batch())


def test_bad_input_of_the_power() -> None:
    with pytest.raises(ValueError, match=r"power must not be 0, got 0"):
        GBWBatchNorm(4, 0)
    with pytest.raises(ValueError, match="did you mean 'identity'"):
        GBWBatchNorm(4, var_about="identiy")
    negative = batch()
    negative[3, 0] = torch.diag(torch.tensor([1.0, 2.0, 3.0, -0.5]))
    with pytest.raises(ValueError, match=r"got an eigenvalue of -0\.5"):
        GBWBatchNorm(4, 0.5)(negative)
