"""Tests of ``netwright.layers.hypercomplex``."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from netwright.layers.algebra import COMPLEX, QUATERNION, Algebra
from netwright.layers.hypercomplex import (
    PHConv1d,
    PHConv2d,
    PHConv3d,
    PHConvTranspose2d,
    PHMLinear,
    algebra_l1,
    hypercomplex_weight,
    pad_channels,
    parameter_groups,
    to_hypercomplex,
)
from netwright.surgery import swapped

DOUBLE = torch.float64


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@given(n=st.integers(1, 5), out=st.integers(1, 3), inn=st.integers(1, 3))
def test_weight_is_the_sum_of_kronecker_products(n: int, out: int, inn: int) -> None:
    A, F = torch.randn(n, n, n, dtype=DOUBLE), torch.randn(n, out, inn, dtype=DOUBLE)
    expected = torch.stack([torch.kron(a, f) for a, f in zip(A, F, strict=True)]).sum(0)
    torch.testing.assert_close(hypercomplex_weight(A, F), expected)


def test_kernels_ride_along_and_groups_have_their_own_filters() -> None:
    A, F = torch.randn(2, 2, 2, dtype=DOUBLE), torch.randn(2, 6, 5, 3, 4, dtype=DOUBLE)
    whole = hypercomplex_weight(A, F)
    assert whole.shape == (12, 10, 3, 4)
    torch.testing.assert_close(whole[..., 1, 2], hypercomplex_weight(A, F[..., 1, 2]))
    grouped = hypercomplex_weight(A, F, groups=3)
    for group in range(3):
        alone = hypercomplex_weight(A, F[:, 2 * group : 2 * group + 2])
        torch.testing.assert_close(grouped[4 * group : 4 * group + 4], alone)


@pytest.mark.parametrize("algebra", [COMPLEX, QUATERNION], ids=lambda a: a.name)
def test_fixed_algebra_gives_the_layer_of_that_algebra(algebra: Algebra) -> None:
    """With blocks of one component each, the filters are one element and the layer multiplies by it."""
    n = algebra.n
    layer = PHMLinear(n, n, n, bias=False, algebra=algebra, learn_algebra=False, dtype=DOUBLE)
    x = torch.randn(7, n, dtype=DOUBLE)
    torch.testing.assert_close(layer(x), algebra.mul(layer.filters.flatten(), x))
    assert "algebra" not in dict(layer.named_parameters())
    assert "algebra" in layer.state_dict()


def test_quaternion_convolution_is_a_sum_of_hamilton_products() -> None:
    conv = PHConv2d(8, 12, 3, padding=1, bias=False, algebra="quaternion", learn_algebra=False, dtype=DOUBLE)
    x = torch.randn(2, 8, 5, 6, dtype=DOUBLE)
    T, blocks = QUATERNION.structure(dtype=DOUBLE), x.unflatten(1, (4, 2))
    expected = [
        sum(
            T[k, i, j] * functional.conv2d(blocks[:, j], conv.filters[i], padding=1) for i in range(4) for j in range(4)
        )
        for k in range(4)
    ]
    torch.testing.assert_close(conv(x), torch.cat(expected, 1))


LAYERS: list[tuple[Callable[..., nn.Module], nn.Module, tuple[int, ...]]] = [
    (PHMLinear.like, nn.Linear(6, 9), (2, 6)),
    (PHConv1d.like, nn.Conv1d(6, 9, 3, stride=2, padding=1), (2, 6, 8)),
    (PHConv2d.like, nn.Conv2d(12, 6, (3, 2), dilation=2, groups=2), (2, 12, 6, 7)),
    (PHConv2d.like, nn.Conv2d(6, 3, (3, 2), padding="same", padding_mode="reflect"), (2, 6, 6, 7)),
    (PHConv2d.like, nn.Conv2d(6, 3, 3, padding=(2, 1), padding_mode="circular"), (2, 6, 6, 7)),
    (PHConv3d.like, nn.Conv3d(3, 6, 3, padding="same", bias=False), (2, 3, 4, 4, 4)),
    (
        PHConvTranspose2d.like,
        nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 12, 4, 5),
    ),
]
IDS = ["linear", "conv1d", "groups", "same", "circular", "conv3d", "transpose"]


every_layer = pytest.mark.parametrize(("like", "layer", "shape"), LAYERS, ids=IDS)


@every_layer
def test_is_torchs_layer_with_the_built_weight(
    like: Callable[..., nn.Module], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    new = like(layer, n=3)
    twin = copy.deepcopy(layer)
    assert new.weight.shape == twin.weight.shape
    with torch.no_grad():
        twin.weight.copy_(new.weight)
    x = torch.randn(shape)
    torch.testing.assert_close(new(x), twin(x))
    torch.testing.assert_close(new(x[0]), twin(x[0]))  # without a batch dimension


@every_layer
def test_like_keeps_bias_and_mean_square(
    like: Callable[..., nn.Module], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    squares = torch.stack([like(layer, n=3).weight.square().mean() for _ in range(200)])
    assert squares.mean().item() == pytest.approx(layer.weight.square().mean().item(), rel=0.1)
    new = like(layer, n=3)
    assert (new.bias is None) == (layer.bias is None)
    if new.bias is not None:
        assert torch.equal(new.bias, layer.bias)


@every_layer
def test_counts_gradients_and_round_trip(
    like: Callable[..., nn.Module], layer: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    new = like(layer, n=3).double()
    bias = 0 if layer.bias is None else layer.bias.numel()
    assert count(new) == 27 + layer.weight.numel() // 3 + bias
    new(torch.randn(shape, dtype=DOUBLE)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in new.parameters())
    save_model(new, str(tmp_path / "layer.safetensors"))
    again = like(layer, n=3).double()
    load_model(again, str(tmp_path / "layer.safetensors"))
    x = torch.randn(shape, dtype=DOUBLE)
    torch.testing.assert_close(again.eval()(x), new(x))


@every_layer
def test_runs_on_meta_and_under_autocast(
    like: Callable[..., nn.Module], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        on_meta = like(copy.deepcopy(layer).to("meta"), n=3)
        assert on_meta(torch.empty(shape)).shape == layer(torch.empty(shape, device="cpu")).shape
    new, x = like(layer, n=3), torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert new.weight.dtype == torch.float32
        half = new(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), new(x), atol=0.05, rtol=0.05)


def test_gradients_in_double_precision() -> None:
    A = torch.randn(2, 2, 2, dtype=DOUBLE, requires_grad=True)
    F = torch.randn(2, 2, 3, 2, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(hypercomplex_weight, (A, F))
    assert gradgradcheck(hypercomplex_weight, (A, F))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training: bool) -> None:
    layer = PHConv2d(4, 8, 3).train(training)
    x = torch.randn(1, 4, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        layer.filters.mul_(2)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("algebra", [None, "quaternion"])
def test_initial_weight_has_xaviers_variance(algebra: str | None) -> None:
    weights = [PHConv2d(32, 64, 3, algebra=algebra).weight.flatten() for _ in range(20)]
    variance = torch.cat(weights).var().item()
    assert variance == pytest.approx(2 / ((32 + 64) * 9), rel=0.05)


def test_hamilton_product_is_learned_from_examples() -> None:
    """The algebra of a layer whose filters are the left factor is the table of products, found by least squares."""
    p, q = torch.randn(2, 50, 4, dtype=DOUBLE)
    layer = PHMLinear(4, 4, bias=False, dtype=DOUBLE)
    optimizer = torch.optim.LBFGS([layer.algebra], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        W = torch.vmap(hypercomplex_weight, in_dims=(None, 0))(layer.algebra, p[:, :, None, None])
        error = ((W @ q[:, :, None]).squeeze(-1) - QUATERNION.mul(p, q)).square().mean()
        error.backward()
        return error

    optimizer.step(loss)
    torch.testing.assert_close(layer.algebra.detach(), QUATERNION.left_basis(dtype=DOUBLE), atol=1e-3, rtol=0)


class TestKeptWeight:
    @pytest.fixture
    def layer(self) -> PHMLinear:
        return PHMLinear(8, 8, n=4).eval()

    @staticmethod
    def fresh(layer: PHMLinear) -> Tensor:
        return hypercomplex_weight(layer.algebra, layer.filters).detach()

    def check(self, layer: PHMLinear) -> None:
        with torch.no_grad():
            torch.testing.assert_close(layer.weight, self.fresh(layer), atol=0, rtol=0)

    @torch.no_grad()
    def test_is_built_once(self, layer: PHMLinear) -> None:
        assert layer.weight is layer.weight

    def test_reaches_the_parameters_where_a_gradient_is_wanted(self, layer: PHMLinear) -> None:
        self.check(layer)
        layer(torch.randn(2, 8)).sum().backward()
        assert layer.filters.grad is not None
        assert layer.algebra.grad is not None

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: layer.filters.mul_(2),
            lambda layer: layer.algebra[0, 0].add_(1),
            lambda layer: layer.load_state_dict(PHMLinear(8, 8, n=4).state_dict()),
            lambda layer: layer.load_state_dict(PHMLinear(8, 8, n=4).state_dict(), assign=True),
            lambda layer: layer.double(),
            lambda layer: layer.half().float(),
            lambda layer: setattr(layer, "filters", nn.Parameter(torch.randn(4, 2, 2))),
            lambda layer: setattr(layer.filters, "data", layer.filters.data * 2),
            lambda layer: (layer.train(), layer.filters.data.mul_(2), layer.eval()),
            lambda layer: nn.init.zeros_(layer.filters),
        ],
    )
    @torch.no_grad()
    def test_follows_every_change(self, layer: PHMLinear, change: Callable[[PHMLinear], object]) -> None:
        for _ in range(3):  # a freed block of memory may come back at the same place
            self.check(layer)
            change(layer)
            self.check(layer)

    def test_follows_an_optimiser_step_in_eval_mode(self, layer: PHMLinear) -> None:
        self.check(layer)
        layer(torch.randn(2, 8)).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
        self.check(layer)

    @torch.no_grad()
    def test_a_copy_keeps_its_own(self, layer: PHMLinear) -> None:
        for _ in range(3):
            layer.filters.mul_(1.5)
        self.check(layer)
        other = copy.deepcopy(layer)
        for _ in range(4):
            self.check(other)
            other.filters.mul_(2)
        self.check(layer)

    def test_of_inference_mode_serves_gradients_of_the_input(self, layer: PHMLinear) -> None:
        layer.requires_grad_(False)
        with torch.inference_mode():
            layer(torch.randn(2, 8))
        x = torch.randn(2, 8, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 8))

    def test_is_left_alone_by_functional_calls(self, layer: PHMLinear) -> None:
        x = torch.randn(2, 8)
        with torch.no_grad():
            before = layer(x)
        parameters = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in layer.named_parameters()}
        both = torch.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(parameters)
        torch.testing.assert_close(both[0], before)
        assert not torch.allclose(both[1], before)
        layer.requires_grad_(False)
        torch.func.jacrev(layer)(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), before)


def test_converter_replaces_what_n_divides() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),  # the stem for grey pictures
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.Conv2d(16, 16, 3, groups=16),  # one channel a group
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.Linear(12, 10),  # the head
    )
    new = to_hypercomplex(model, n=4)
    assert swapped(new) == ("2", "6")
    assert new(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert isinstance(model[2], nn.Conv2d)
    assert swapped(to_hypercomplex(model, 4, where=lambda name, _: name == "6")) == ("6",)
    fixed = to_hypercomplex(model, algebra="quaternion", learn_algebra=False)
    torch.testing.assert_close(fixed[2].algebra, QUATERNION.left_basis())
    with pytest.raises(ValueError, match=r"found no linear or convolutional layer .* n = 7"):
        to_hypercomplex(model, n=7)


def test_converted_layers_keep_the_variance_of_the_signal() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64))
    new = to_hypercomplex(model, n=4)
    x = torch.randn(500, 64)
    assert new(x).var().item() == pytest.approx(model(x).var().item(), rel=0.25)


def test_converter_works_inside_of_torchs_transformer() -> None:
    """Its attention and its fast path in eval mode read the weights of their layers themselves."""
    layer = to_hypercomplex(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), n=4)
    assert swapped(layer) == ("self_attn.out_proj", "linear1", "linear2")
    x = torch.randn(2, 5, 8)
    trained = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), trained, atol=1e-5, rtol=1e-4)


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.requires_grad_(False)
    new = to_hypercomplex(model)[0]
    assert {name: p.requires_grad for name, p in new.named_parameters()} == {
        "algebra": False,
        "filters": False,
        "bias": True,
    }


def test_parameter_groups_spare_the_algebras() -> None:
    model = nn.Sequential(PHMLinear(8, 8), nn.Linear(8, 2), PHMLinear(8, 8, algebra="quaternion", learn_algebra=False))
    rest, algebras = parameter_groups(model, 5e-4)
    assert [p.shape for p in algebras["params"]] == [(4, 4, 4)]
    assert (rest["weight_decay"], algebras["weight_decay"]) == (5e-4, 0.0)
    assert len(rest["params"]) + 1 == len(list(model.parameters()))
    torch.optim.SGD([rest, algebras], lr=0.1)
    expected = model[0].algebra.abs().sum() + 16  # the quaternions' table has 16 entries ±1
    torch.testing.assert_close(algebra_l1(model), expected)
    assert PHMLinear.dense_parameters == {"algebra"}


def test_channels_are_padded_in_front() -> None:
    x = torch.randn(2, 3, 4, 4)
    zero, grey = pad_channels(x, 4), pad_channels(x, 4, "grey")
    assert torch.equal(zero[:, 1:], x)
    assert not zero[:, 0].any()
    torch.testing.assert_close(grey[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    assert torch.equal(pad_channels(x, 3), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PHMLinear(10, 8, n=4), "in_features must be divisible by n = 4, got 10"),
        (lambda: PHMLinear(8, 10, n=4), "out_features must be divisible by n = 4, got 10"),
        (lambda: PHMLinear(8, 8, n=0), "n must be at least 1, got 0"),
        (lambda: PHConv2d(8, 9, 3), "out_channels must be divisible by n = 4, got 9"),
        (lambda: PHConv2d(8, 8, 3, groups=4), r"in_channels / n must be divisible by groups = 4, got 2"),
        (lambda: PHMLinear(8, 8, n=2, algebra="quaternion"), r"algebra must have shape \(2, 2, 2\), got \(4, 4, 4\)"),
        (lambda: PHMLinear(8, 8, algebra=torch.zeros(4, 4)), r"algebra must have shape \(4, 4, 4\), got \(4, 4\)"),
        (lambda: PHMLinear(8, 8, algebra="quaternoin"), "unknown algebra 'quaternoin'; did you mean 'quaternion'"),
        (lambda: PHMLinear(8, 8, learn_algebra=False), "learn_algebra=False needs an algebra"),
        (lambda: PHConv2d(8, 8, (3, 3, 3)), "kernel_size must be a number or 2 numbers"),
        (lambda: PHConv2d(8, 8, 3, stride=2, padding="same"), "padding 'same' needs stride 1"),
        (lambda: PHConv2d(8, 8, 3)(torch.randn(1, 4, 5, 5)), "dimension -3 of input must have size 8"),
        (lambda: PHConv2d(8, 8, 3)(torch.randn(8, 5)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: PHMLinear(8, 8)(torch.randn(1, 4)), "dimension -1 of input must have size 8"),
        (lambda: pad_channels(torch.randn(1, 2, 3, 3), 4, "grey"), "dimension -3 of input must have size 3"),
        (lambda: pad_channels(torch.randn(1, 3, 3, 3), 4, "gray"), "unknown fill 'gray'; did you mean 'grey'"),  # type: ignore[arg-type]
        (lambda: algebra_l1(nn.Linear(2, 2)), "found no hypercomplex layer, got Linear"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
