"""Tests of ``netwright.layers.quadratic``."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from sklearn.preprocessing import PolynomialFeatures
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from netwright.cost import saved_bytes
from netwright.layers.quadratic import (
    QuadraticConv2d,
    QuadraticLinear,
    gaussian_init_,
    piece_degree,
    quadratic_layers,
    quadraticize,
)
from netwright.surgery import swapped

DOUBLE = torch.float64


def random_(layer: nn.Module) -> nn.Module:
    """Random values everywhere, so that no term is zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@given(seed=st.integers(0, 2**31), form=st.sampled_from(["full", "compact"]))
def test_linear_layer_is_the_bare_expression(seed: int, form: str) -> None:
    torch.manual_seed(seed)
    layer = random_(QuadraticLinear(5, 3, form=form, dtype=DOUBLE))  # type: ignore[arg-type]
    x = torch.randn(2, 4, 5, dtype=DOUBLE)
    r = x @ layer.weight_r.T + layer.bias_r
    g = x @ layer.weight_g.T + layer.bias_g if form == "full" else 1.0
    torch.testing.assert_close(layer(x), r * g + x**2 @ layer.weight_b.T + layer.bias_b)


@pytest.mark.parametrize("form", ["full", "compact"])
def test_a_neuron_is_linear_in_the_features_of_degree_two(form: str) -> None:
    """All of scikit-learn's for the full form; the compact one has no products of different inputs."""
    layer = random_(QuadraticLinear(3, 2, form=form, dtype=DOUBLE))  # type: ignore[arg-type]
    x = torch.randn(50, 3, dtype=DOUBLE)
    features = torch.from_numpy(PolynomialFeatures(2).fit_transform(x.numpy()))
    if form == "compact":
        features = features[:, [0, 1, 2, 3, 4, 7, 9]]  # 1, x_i and x_i²
    outputs = layer(x).detach()
    torch.testing.assert_close(features @ torch.linalg.lstsq(features, outputs).solution, outputs)


GEOMETRIES: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {}),
    ({"stride": 2, "padding": 1, "groups": 2}, {"stride": 2, "padding": 1, "groups": 2}),
    ({"padding": "same", "dilation": 2, "bias": False}, {"padding": "same", "dilation": 2}),
    ({"padding": "valid"}, {}),
]


@pytest.mark.parametrize("form", ["full", "compact"])
@pytest.mark.parametrize(("options", "geometry"), GEOMETRIES)
@pytest.mark.parametrize("kernel", [3, (2, 3)])
def test_convolution_is_the_bare_expression(
    form: str, options: dict[str, object], geometry: dict[str, object], kernel: int | tuple[int, int]
) -> None:
    layer = random_(QuadraticConv2d(4, 6, kernel, form=form, dtype=DOUBLE, **options))  # type: ignore[arg-type]
    x = torch.randn(2, 4, 7, 8, dtype=DOUBLE)
    r = functional.conv2d(x, layer.weight_r, layer.bias_r, **geometry)  # type: ignore[arg-type]
    g = functional.conv2d(x, layer.weight_g, layer.bias_g, **geometry) if form == "full" else 1.0  # type: ignore[arg-type]
    b = functional.conv2d(x**2, layer.weight_b, layer.bias_b, **geometry)  # type: ignore[arg-type]
    torch.testing.assert_close(layer(x), r * g + b)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


CONVENTIONAL: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 4), (3, 6)),
    (nn.Linear(6, 4, bias=False), (3, 6)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
    (nn.Conv2d(4, 6, (3, 2), padding="same", padding_mode="reflect", bias=False), (2, 4, 7, 7)),
    (nn.Conv2d(4, 6, 3, padding=(2, 1), dilation=2, padding_mode="circular"), (2, 4, 7, 7)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVENTIONAL)
@pytest.mark.parametrize("form", ["full", "compact"])
def test_a_converted_layer_starts_as_the_conventional_one(layer: nn.Module, shape: tuple[int, ...], form: str) -> None:
    new = quadraticize(layer, form)  # type: ignore[arg-type]
    x, y = torch.randn(shape, requires_grad=True), torch.randn(shape)
    assert torch.equal(new(x), layer(x))
    (ours,) = torch.autograd.grad(new(x).sin().sum(), x)
    (theirs,) = torch.autograd.grad(layer(x).sin().sum(), x)
    assert torch.equal(ours, theirs)
    # the quadratic terms are alive: they get a gradient, and change the output once they are not zero
    new(y).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in new.parameters())
    random_(new)
    assert not torch.allclose(new(y), layer(y))


def test_biases_and_counts() -> None:
    assert count(QuadraticLinear(6, 4)) == 3 * (24 + 4)
    assert count(QuadraticLinear(6, 4, form="compact")) == 2 * (24 + 4)
    # without biases the gate keeps its own: at 1 it lets the linear path through
    layer = QuadraticConv2d(2, 4, 3, bias=False)
    assert count(layer) == 3 * 72 + 4
    assert torch.equal(layer.bias_g, torch.ones(4))
    assert (layer.bias_r, layer.bias_b) == (None, None)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # forward mode loads it
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (QuadraticLinear(3, 2, dtype=DOUBLE), (2, 2, 3)),
        (QuadraticLinear(3, 2, False, form="compact", dtype=DOUBLE), (2, 3)),
        (QuadraticConv2d(2, 2, 2, stride=2, padding=1, groups=2, dtype=DOUBLE), (1, 2, 3, 3)),
        (QuadraticConv2d(2, 2, 2, bias=False, form="compact", dtype=DOUBLE), (2, 3, 3)),
    ],
)
def test_gradients_of_first_and_second_order_and_forward_mode(layer: nn.Module, shape: tuple[int, ...]) -> None:
    random_(layer)
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (torch.randn(shape, dtype=DOUBLE, requires_grad=True), *layer.parameters())
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs)


def test_works_with_function_transforms() -> None:
    layer = random_(QuadraticConv2d(2, 3, 2, dtype=DOUBLE))
    x = torch.randn(4, 2, 3, 3, dtype=DOUBLE)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    whole = torch.func.grad(loss)(parameters, x)
    for name, gradient in whole.items():
        torch.testing.assert_close(per_sample[name].sum(0), gradient)


def test_the_square_is_not_kept_for_backward() -> None:
    x = torch.randn(4, 8, 6, 6)
    one = x.numel() * x.element_size()
    layer = QuadraticConv2d(8, 8, 3, padding=1)
    assert saved_bytes(layer, x) == 2 * one  # the two factors
    assert saved_bytes(QuadraticConv2d(8, 8, 3, padding=1, form="compact"), x) == 0
    assert saved_bytes(QuadraticLinear(8, 8), x.flatten(1).view(-1, 8)) == 2 * one


@pytest.mark.parametrize("form", ["full", "compact"])
def test_runs_on_meta_under_autocast_and_compiled(form: str) -> None:
    layer = random_(QuadraticConv2d(2, 4, 3, padding=1, form=form))  # type: ignore[arg-type]
    assert copy.deepcopy(layer).to("meta")(torch.empty(2, 2, 5, 5, device="meta")).shape == (2, 4, 5, 5)
    x = torch.randn(2, 2, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), atol=0.6, rtol=0.05)
    half.float().sum().backward()
    assert layer.weight_b.grad.dtype == torch.float32
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_state_round_trip(tmp_path: Path) -> None:
    layer = random_(QuadraticLinear(4, 4))
    save_model(layer, str(tmp_path / "layer.safetensors"))
    again = QuadraticLinear(4, 4)
    load_model(again, str(tmp_path / "layer.safetensors"))
    x = torch.randn(2, 4)
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_pieces_have_degree_two_to_the_depth(depth: int) -> None:
    """Along a line, differences of order d + 1 of a polynomial of degree d vanish, those of order d do not."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = QuadraticLinear(3, 3, dtype=DOUBLE)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter)
        layers += [layer, nn.ReLU()]  # on positive inputs all activations are active: one piece
    model = nn.Sequential(*layers)
    line = torch.linspace(0, 2, 20, dtype=DOUBLE)[:, None] * torch.rand(3, dtype=DOUBLE)
    values, degree = model(line), piece_degree(depth)
    scale = values.abs().max()
    assert torch.diff(values, n=degree + 1, dim=0).abs().max() < 1e-9 * scale
    assert torch.diff(values, n=degree, dim=0).abs().max() > 1e-7 * scale


def test_conversion_of_a_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10), nn.Conv1d(1, 1, 1)
    )
    new = quadraticize(model)
    assert swapped(new) == ("0", "4")
    assert list(quadratic_layers(new)) == ["0", "4"]
    only = quadraticize(model, "compact", where=lambda name, _: name == "4")
    assert swapped(only) == ("4",)
    assert only[4].form == "compact"


def test_layers_whose_weights_torch_reads_itself_stay() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    new = quadraticize(nn.Sequential(nn.Linear(8, 8), block))
    assert swapped(new) == ("0",)
    with torch.no_grad():
        assert new.eval()(torch.randn(2, 5, 8)).shape == (2, 5, 8)


def test_frozen_layers_stay_frozen() -> None:
    linear = nn.Linear(4, 4).requires_grad_(False)
    new = quadraticize(nn.Sequential(linear, nn.Linear(4, 4)))
    assert not any(p.requires_grad for p in new[0].parameters() if p is not new[0].bias_b)
    assert all(p.requires_grad for p in new[1].parameters())


def test_gaussian_init_is_what_relinear_replaces() -> None:
    model = quadraticize(nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 50)))
    first = gaussian_init_(copy.deepcopy(model), torch.Generator().manual_seed(3))
    again = gaussian_init_(copy.deepcopy(model), torch.Generator().manual_seed(3))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    for weight in (first[0].weight_r, first[0].weight_g, first[0].weight_b):
        assert weight.var().item() == pytest.approx(2 / 200, rel=0.05)
    assert not first[0].bias_g.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuadraticLinear(4, 4, form="ful"), "unknown form 'ful'; did you mean 'full'"),  # type: ignore[arg-type]
        (lambda: quadraticize(nn.Linear(4, 4), "compakt"), "unknown form 'compakt'; did you mean 'compact'"),  # type: ignore[arg-type]
        (
            lambda: quadraticize(nn.Sequential(nn.ReLU())),
            "found no linear layer or 2-D convolution to replace, got a Seq",
        ),
        (lambda: QuadraticLinear(4, 4)(torch.randn(2, 3)), "dimension -1 of input must have size 4"),
        (lambda: QuadraticConv2d(4, 4, 3)(torch.randn(2, 3, 5, 5)), "dimension -3 of input must have size 4"),
        (
            lambda: QuadraticConv2d(4, 4, 3)(torch.randn(4, 5)),
            r"input must have shape \(batch, channels, height, width\)",
        ),
        (lambda: QuadraticConv2d(4, 6, 3, groups=4), "out_channels must be divisible by groups = 4, got 6"),
        (lambda: QuadraticConv2d(4, 4, (3, 3, 3)), "kernel_size must be a number or 2 numbers"),
        (lambda: QuadraticConv2d(4, 4, 3, 2, "same"), "padding 'same' needs stride 1"),
        (lambda: QuadraticConv2d(4, 4, 3, padding_mode="zero"), "unknown padding_mode 'zero'; did you mean 'zeros'"),
        (lambda: QuadraticLinear(0, 4), "in_features must be at least 1, got 0"),
        (lambda: piece_degree(-1), "depth must be at least 0"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
