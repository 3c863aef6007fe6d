"""Tests of ``netwright.layers.af_kan``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from netwright.cost import count_params
from netwright.layers.af_kan import (
    ACTIVATIONS,
    AFKAN,
    COMBINATIONS,
    FUNCTIONS,
    REDUCTIONS,
    AFKANLayer,
    ReLUKANLayer,
)


def test_published_counts() -> None:
    with torch.device("meta"):
        assert count_params(AFKAN([784, 64, 10])) == 52_552
        assert count_params(nn.Sequential(nn.Linear(784, 64), nn.Linear(64, 10))) == 50_890
        # the public class allocates a bias and the weights of all reductions, whichever is used
        everything = AFKANLayer(64, 10, reduction=tuple(REDUCTIONS), bias=True)
        shared = count_params(everything.reductions[list(REDUCTIONS).index("multistep")])  # with global attention
        added = count_params(everything) - shared - count_params(AFKANLayer(64, 10))
        assert added == 343 + 10
        assert 52_552 + 2 * 343 + 64 + 10 == 53_312


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_counts_of_a_layer_by_the_formula(reduction: str) -> None:
    K, window = 7, 2
    own = {
        "global": K + 1,
        "spatial": 4 * K,
        "multistep": K + 1,
        "local": 3 * (window**2 + window) + 3 * window + 1,
        "self": 3 * (K**2 + K),
        "multihead": 4 * (K**2 + K),
    }
    layer = AFKANLayer(20, 5, grid=4, order=3, reduction=reduction, device="meta")
    assert count_params(layer) == 2 * K + 1 + 20 * 5 + 2 * 20 + own[reduction]


def reference_features(layer: AFKANLayer, x: Tensor) -> Tensor:
    """As the authors' code computes them, over a whole batch: L2 norm and all."""
    sigma = ACTIVATIONS[layer.activation]
    a, b = sigma(x[:, :, None] - layer.low), sigma(layer.high - x[:, :, None])
    features = {
        "quad1": a**2 * b**2,
        "quad2": a * b + a**2 + b**2,
        "sum": a + b,
        "prod": a * b,
        "sum_prod": a + b + a * b,
        "cubic1": (a + b) * (a**2 + b**2),
        "cubic2": a**3 * b**3,
    }[layer.func]
    features = functional.normalize(features, p=2, dim=None)
    return (features - features.min()) / (features.max() - features.min())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("func", FUNCTIONS)
def test_features_are_those_of_the_authors(activation: str, func: str) -> None:
    layer = AFKANLayer(5, 3, activation=activation, func=func, feature_norm="batch").double()
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.features(x), reference_features(layer, x))
    layer.feature_norm = "sample"
    for row, features in zip(x, layer.features(x), strict=True):
        torch.testing.assert_close(features, reference_features(layer, row[None])[0])


def reduced(layer: AFKANLayer, f: Tensor, reduction: str) -> Tensor:
    """The reductions, for one sample and one input at a time."""
    (module,) = layer.reductions
    t = max(1.0, layer.temperature.item())
    if reduction == "global":
        scores = torch.stack([module.score(row)[0] for row in f]) / t
        return torch.stack([(row * weight).sum() for row, weight in zip(f, scores.softmax(0), strict=True)])
    if reduction == "spatial":
        weights = (module.conv(f.T[None])[0] / t).softmax(0)
        return (f.T * weights).sum(0)
    if reduction == "multistep":
        return torch.stack([module.linear(row)[0] for row in f])
    if reduction == "local":
        found = []
        for row in f:
            windows = torch.stack([row[i : i + 2] for i in range(0, len(row) - 1, 2)])
            weights = (module.query(windows) @ module.key(windows).T / t).softmax(-1)
            found.append(module.linear((weights @ module.value(windows)).flatten())[0])
        return torch.stack(found)
    if reduction == "self":
        weights = (module.query(f) @ module.key(f).T / t).softmax(-1)
        return (weights @ module.value(f)).sum(-1)
    return module.attention(f, f, f)[0].sum(-1)


@pytest.mark.parametrize("norm", ["layer", "batch", None])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_output_is_the_formula(reduction: str, norm: str | None) -> None:
    layer = AFKANLayer(5, 3, reduction=reduction, norm=norm).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(4, 5, dtype=torch.float64)
    rows = torch.stack([reduced(layer, f, reduction) for f in layer.features(x)])
    expected = functional.silu(layer.norm(rows)) @ layer.weight.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.view(2, 2, 5)), expected.view(2, 2, 3))
    torch.testing.assert_close(layer(x[0]), expected[0])


@given(st.integers(1, 5), st.integers(2, 6))
def test_a_prediction_does_not_depend_on_its_batch(number: int, features: int) -> None:
    layer = AFKANLayer(features, 3)
    x = 3 * torch.randn(number, features)
    torch.testing.assert_close(layer(x), torch.stack([layer(row) for row in x]))
    torch.testing.assert_close(layer(torch.cat([x, 100 * torch.ones(1, features)]))[:number], layer(x))


def test_with_normalisation_over_the_batch_it_does() -> None:
    layer = AFKANLayer(4, 3, feature_norm="batch", norm=None)
    x = torch.randn(6, 4)
    assert not torch.allclose(layer(x)[:3], layer(x[:3]))


def test_phases_and_temperature() -> None:
    layer = AFKANLayer(9, 3, grid=4, order=2)
    assert layer.low.tolist() == pytest.approx([k / 4 for k in range(-2, 4)])
    assert layer.high.tolist() == pytest.approx([k / 4 + 3 / 4 for k in range(-2, 4)])
    assert layer.temperature.item() == 3
    x = torch.randn(2, 9)
    with torch.no_grad():
        layer.temperature.fill_(1.0)
        coldest = layer(x)
        layer.temperature.fill_(0.2)
    assert torch.equal(layer(x), coldest)
    layer(x).sum().backward()
    assert layer.low.grad is not None
    assert layer.low.grad.abs().min() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients(reduction: str) -> None:
    layer = AFKANLayer(3, 2, grid=2, order=1, reduction=reduction).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_paths_share_all_but_their_reductions(combine: str) -> None:
    model = AFKAN([6, 4, 3], reduction=("global", "spatial"), combine=combine)
    assert count_params(model) == count_params(AFKAN([6, 4, 3])) + 2 * 24
    x = torch.randn(5, 6)
    a, b = (model.layers[1](model.layers[0](x, path), path) for path in (0, 1))
    expected = {
        "sum": a + b,
        "product": a * b,
        "sum_product": a + b + a * b,
        "quadratic": a + b + a * b + a**2 + b**2,
    }[combine]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("grid", "order"), [(1, 0), (3, 3), (5, 2)])
def test_functions_of_relu_kan_have_peak_one(grid: int, order: int) -> None:
    layer = ReLUKANLayer(1, 1, grid, order, norm=False).double()
    x = torch.linspace(-order / grid - 1, 2 + order / grid, 20_001, dtype=torch.float64)[:, None]
    values = layer.features(x)[:, 0]
    torch.testing.assert_close(values.max(0).values, torch.ones(grid + order, dtype=torch.float64), atol=1e-5, rtol=0)
    peaks = x[values.argmax(0), 0].tolist()
    assert peaks == pytest.approx([(k + (order + 1) / 2) / grid for k in range(-order, grid)], abs=1e-3)
    width = (order + 1) / grid
    assert (values > 0).double().mean(0).tolist() == pytest.approx(
        [width / (x[-1] - x[0]).item()] * len(peaks), abs=1e-3
    )


def test_relu_kan_is_its_formula() -> None:
    layer = ReLUKANLayer(4, 3)
    x = torch.randn(5, 4)
    z = layer.norm(x)[:, None, :]
    values = (torch.relu(z - layer.low) * torch.relu(layer.high - z) * 4 * 9 / 16) ** 2
    torch.testing.assert_close(layer(x), torch.einsum("bki,oik->bo", values, layer.weight) + layer.bias)
    y = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ReLUKANLayer(4, 3, 2, 1).double(), (y,))


@pytest.mark.parametrize("make", [lambda: AFKANLayer(6, 4), lambda: ReLUKANLayer(6, 4), lambda: AFKAN([6, 5, 4])])
def test_saved_under_autocast_on_meta_and_traced(make, tmp_path) -> None:
    layer, other = make(), make()
    x = torch.randn(3, 6)
    save_file(layer.state_dict(), tmp_path / "w.safetensors")
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(other(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), rtol=0.1, atol=0.1)
    low.float().sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in layer.parameters())
    with torch.device("meta"):
        assert make()(torch.empty(3, 6)).shape == (3, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_takes_the_place_of_a_linear_layer() -> None:
    linear = nn.Linear(6, 4, dtype=torch.float64)
    layer = AFKANLayer.like(linear, grid=2, func="prod", activation="tanh", reduction="spatial")
    assert layer(torch.randn(2, 3, 6, dtype=torch.float64)).shape == (2, 3, 4)
    assert (layer.func, layer.activation, len(layer.low)) == ("prod", "tanh", 5)


def test_constant_features_stay_finite() -> None:
    layer = AFKANLayer(4, 3, activation="relu")
    x = torch.full((2, 4), 50.0, requires_grad=True)  # beyond all functions
    out = layer(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


def test_bad_input() -> None:
    for arguments, message in (
        ({"func": "quad3"}, "unknown func 'quad3'; choose one of quad1, quad2, sum, prod, sum_prod, cubic1, cubic2"),
        ({"activation": "swish"}, "unknown activation 'swish'; choose one of softplus, sigmoid, silu, relu, "),
        (
            {"reduction": "mean"},
            "unknown reduction 'mean'; choose one of global, spatial, multistep, local, self, multi",
        ),
        ({"norm": "group"}, "unknown norm 'group'; choose one of layer, batch"),
        ({"feature_norm": "row"}, "unknown feature_norm 'row'; choose one of sample, batch"),
        ({"order": -1}, "order must be at least 0, got -1"),
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"reduction": "local", "window": 7}, r"window must be in \[1, 6\], got 7"),
        ({"reduction": "local", "step": 0}, "step must be at least 1"),
        ({"reduction": ()}, "number of reductions must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            AFKANLayer(4, 3, **arguments)
    with pytest.raises(ValueError, match="dimension -1 of input must have size 4"):
        AFKANLayer(4, 3)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="unknown combine 'mean'; choose one of sum, product"):
        AFKAN([4, 3], combine="mean")
    with pytest.raises(ValueError, match="number of widths must be at least 2"):
        AFKAN([4])
    with pytest.raises(ValueError, match="grid must be at least 1"):
        ReLUKANLayer(4, 3, grid=0)
    assert math.isfinite(AFKANLayer(1, 1)(torch.zeros(1)).item())
