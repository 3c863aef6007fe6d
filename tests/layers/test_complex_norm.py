"""Tests of ``netwright.layers.complex_norm``."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from netwright.compression.masks import prunable
from netwright.cost import count_params, saved_bytes
from netwright.layers._complex_norm import normalise
from netwright.layers.complex import ComplexLinear
from netwright.layers.complex_norm import (
    ComplexBatchNorm1d,
    ComplexBatchNorm2d,
    ComplexBatchNorm3d,
    ComplexGroupNorm,
    ComplexLayerNorm,
    inverse_sqrt_2x2,
)

DOUBLE = torch.complex128


def ellipse(*shape: int) -> Tensor:
    """Numbers whose parts are of unequal size, correlated, and not centred."""
    a, b = torch.randn(2, *shape, dtype=torch.float64)
    return torch.complex(3 * a + 1, 2 * a + 0.5 * b - 4)


def covariance(z: Tensor) -> Tensor:
    """2×2, of all numbers."""
    return torch.cov(torch.view_as_real(z).reshape(-1, 2).t(), correction=0)


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1e-2))
def test_closed_form_is_the_inverse_square_root(seed: int, eps: float) -> None:
    factor = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    V = factor @ factor.t() + 1e-3 * torch.eye(2, dtype=torch.float64)
    rr, ri, ii = inverse_sqrt_2x2(V[0, 0], V[0, 1], V[1, 1], eps)
    values, vectors = torch.linalg.eigh(V + eps * torch.eye(2, dtype=torch.float64))
    expected = vectors @ torch.diag(values.rsqrt()) @ vectors.t()
    torch.testing.assert_close(torch.stack([rr, ri, ri, ii]).view(2, 2), expected)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_singular_covariance_stays_finite_in_single_precision(size: float) -> None:
    """Both parts are equal: rounding must not make the determinant negative."""
    a = size * torch.randn(64, 3, 4, 4)
    z = torch.complex(a, a).requires_grad_()
    layer = ComplexBatchNorm2d(3)
    y = layer(z)
    y.abs().square().sum().backward()
    assert torch.isfinite(torch.view_as_real(y)).all()
    assert torch.isfinite(torch.view_as_real(z.grad)).all()
    real = torch.complex(a, torch.zeros_like(a))  # as real pictures are
    torch.testing.assert_close(layer(real).imag, torch.zeros_like(a))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ComplexBatchNorm1d(3, affine=False, eps=1e-9), (200, 3)),
        (ComplexBatchNorm1d(3, affine=False, eps=1e-9), (20, 3, 9)),
        (ComplexBatchNorm2d(3, affine=False, eps=1e-9), (8, 3, 5, 6)),
        (ComplexBatchNorm3d(3, affine=False, eps=1e-9), (8, 3, 5, 3, 2)),
    ],
)
def test_batch_norm_whitens_each_channel(layer: nn.Module, shape: tuple[int, ...]) -> None:
    y = layer(ellipse(*shape))
    for channel in y.unbind(1):
        torch.testing.assert_close(covariance(channel), torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
        assert channel.mean().abs() < 1e-9


def test_layer_and_group_norm_whiten_each_sample() -> None:
    z = ellipse(4, 6, 5, 5)
    for sample in ComplexLayerNorm((6, 5, 5), 1e-9, elementwise_affine=False)(z):
        torch.testing.assert_close(covariance(sample), torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    y = ComplexGroupNorm(2, 6, 1e-9, affine=False)(z)
    for group in y.view(8, 3, 5, 5):
        torch.testing.assert_close(covariance(group), torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        ComplexGroupNorm(1, 6, affine=False)(z), ComplexLayerNorm((6, 5, 5), elementwise_affine=False)(z)
    )


def test_without_whitening_it_is_real_batch_norm_of_each_part() -> None:
    z = ellipse(8, 3, 5, 6)
    layer = randomised(ComplexBatchNorm2d(3, whiten=False, dtype=torch.float64))
    for mode in (True, False):
        layer.train(mode)
        for index, part in enumerate((z.real, z.imag)):
            twin = nn.BatchNorm2d(3, dtype=torch.float64)
            with torch.no_grad():
                twin.weight.copy_(layer.weight[index])
                twin.bias.copy_(layer.bias[index])
            if not mode:
                twin.running_mean.copy_(layer.running_mean[index])
                twin.running_var.copy_(layer.running_cov[2 * index])
            y = layer(z)
            torch.testing.assert_close((y.real, y.imag)[index], twin.train(mode)(part))


def test_gamma_is_a_matrix_and_beta_a_shift() -> None:
    z = ellipse(50, 2)
    plain, layer = (ComplexBatchNorm1d(2, affine=affine, dtype=DOUBLE) for affine in (False, True))
    white = plain(z)
    torch.testing.assert_close(layer(z), white / 2**0.5)  # as it starts
    randomised(layer)
    rr, ri, ii = layer.weight.detach()
    expected = torch.complex(
        rr * white.real + ri * white.imag + layer.bias[0].detach(),
        ri * white.real + ii * white.imag + layer.bias[1].detach(),
    )
    torch.testing.assert_close(layer(z), expected)


def test_running_statistics() -> None:
    z = ellipse(30, 2)
    layer = ComplexBatchNorm1d(2, momentum=0.3, affine=False, dtype=torch.float64)
    torch.testing.assert_close(layer.eval()(z), z / (1 + 1e-5) ** 0.5)  # mean 0 and covariance I before training
    layer.train()(z)
    pairs = torch.view_as_real(z)
    torch.testing.assert_close(layer.running_mean, 0.3 * pairs.mean(0).t())
    for channel in range(2):
        V = torch.cov(pairs[:, channel].t())
        entries = torch.stack([V[0, 0], V[0, 1], V[1, 1]])
        start = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(layer.running_cov[:, channel], 0.7 * start + 0.3 * entries)
    cumulative = ComplexBatchNorm1d(2, momentum=None, eps=1e-9, affine=False, dtype=torch.float64)
    for part in z.split(10):
        cumulative(part)
    means = torch.stack([torch.view_as_real(part).mean(0).t() for part in z.split(10)])
    torch.testing.assert_close(cumulative.running_mean, means.mean(0))
    without = ComplexBatchNorm1d(2, affine=False, track_running_stats=False)
    torch.testing.assert_close(without.eval()(z), without.train()(z))


def test_counts() -> None:
    with torch.device("meta"):
        layer = ComplexBatchNorm2d(16)
        assert layer(torch.empty(2, 16, 4, 4, dtype=torch.complex64)).shape == (2, 16, 4, 4)
        assert count_params(layer) == 5 * 16
        assert count_params(ComplexBatchNorm2d(16, whiten=False)) == 4 * 16 == 2 * count_params(nn.BatchNorm2d(16))
        assert {name: tuple(b.shape) for name, b in layer.named_buffers() if b.ndim} == {
            "running_mean": (2, 16),
            "running_cov": (3, 16),
        }
        assert count_params(ComplexLayerNorm((4, 5))) == 5 * 20
        assert count_params(ComplexGroupNorm(2, 6)) == 5 * 6
    network = nn.Sequential(ComplexLinear(4, 4), ComplexBatchNorm1d(4))
    assert list(prunable(network)) == ["0.weight_real", "0.weight_imag"]


LAYERS = [
    lambda **o: ComplexBatchNorm2d(3, **o),
    lambda **o: ComplexBatchNorm2d(3, whiten=False, **o),
    lambda **o: ComplexBatchNorm2d(3, affine=False, **o),
    lambda **o: ComplexBatchNorm2d(3, affine=False, whiten=False, **o),
    lambda **o: ComplexGroupNorm(1, 3, **o),
    lambda **o: ComplexGroupNorm(1, 3, whiten=False, **o),
    lambda **o: ComplexLayerNorm((3, 2, 2), **o),
]
every_layer = pytest.mark.parametrize("make", LAYERS)


@every_layer
def test_gradients(make: Callable[..., nn.Module]) -> None:
    layer = randomised(make(dtype=torch.float64))
    z = ellipse(2, 3, 2, 2).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def run(z: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (z,))

    assert gradcheck(run, (z, *layer.parameters()), fast_mode=True)
    assert gradgradcheck(run, (z, *layer.parameters()), fast_mode=True)
    if isinstance(layer, ComplexBatchNorm2d):
        assert gradcheck(layer.eval(), (z,), fast_mode=True)


def test_blocks_of_channels_make_no_difference() -> None:
    z = torch.randn(40, 7, 30, 30, dtype=torch.complex64, requires_grad=True)  # above one block
    layer = randomised(ComplexBatchNorm2d(7))
    g = torch.randn_like(z)
    mine = torch.autograd.grad(layer(z), [z, *layer.parameters()], g)
    weight, bias = layer.weight.view(3, 1, 7, 1, 1), layer.bias.view(2, 1, 7, 1, 1)
    plain = normalise(z, weight, bias, (0, 2, 3), layer.eps, True)[0]
    reference = torch.autograd.grad(plain, [z, *layer.parameters()], g)
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_keeps_little_for_backward() -> None:
    z = torch.randn(8, 16, 16, 16, dtype=torch.complex64, requires_grad=True)
    layer = ComplexBatchNorm2d(16)
    assert saved_bytes(layer, z) < 0.05 * z.numel() * 8


@pytest.mark.parametrize("make", [LAYERS[0], LAYERS[4]])
def test_round_trip_autocast_and_compile(make: Callable[..., nn.Module]) -> None:
    layer = randomised(make())
    z = ellipse(4, 3, 2, 2).to(torch.complex64)
    layer(z)
    again = make()
    again.load_state_dict(load(save(layer.state_dict())))
    torch.testing.assert_close(again.eval()(z), layer.eval()(z))
    layer.train()
    expected = layer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(z), expected)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(z), expected, atol=1e-5, rtol=1e-5)


def test_like_takes_scale_and_shift() -> None:
    real = randomised(nn.BatchNorm2d(4, eps=1e-3, momentum=0.2))
    new = ComplexBatchNorm2d.like(real)
    assert (new.num_features, new.eps, new.momentum) == (4, 1e-3, 0.2)
    torch.testing.assert_close(new.weight[0], real.weight / 2**0.5)
    torch.testing.assert_close(new.bias, torch.stack([real.bias, torch.zeros(4)]))
    assert ComplexLayerNorm.like(nn.LayerNorm((4, 5))).normalized_shape == (4, 5)
    group = ComplexGroupNorm.like(nn.GroupNorm(2, 6, affine=False), whiten=False)
    assert (group.num_groups, group.affine, group.whiten) == (2, False, False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ComplexBatchNorm2d(3)(torch.randn(2, 3, 4, 4)), "input must be complex"),
        (
            lambda: ComplexBatchNorm2d(3)(ellipse(1, 3, 1, 1)),
            "covariance of a channel needs at least 2 values, got",
        ),
        (lambda: ComplexBatchNorm1d(3)(ellipse(1, 3)), "covariance of a channel needs at least 2 values"),
        (lambda: ComplexBatchNorm2d(3)(ellipse(2, 4, 4, 4)), "dimension 1 of input must have size 3"),
        (lambda: ComplexBatchNorm2d(3)(ellipse(2, 3, 4)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: ComplexBatchNorm2d(0), "num_features must be at least 1, got 0"),
        (lambda: ComplexBatchNorm2d(3, eps=0), "eps must be positive, got 0"),
        (lambda: ComplexBatchNorm2d(3, momentum=2.0), r"momentum must be in \[0, 1\], got 2.0"),
        (lambda: ComplexLayerNorm(4)(torch.randn(2, 4)), "input must be complex"),
        (lambda: ComplexLayerNorm(4)(ellipse(2, 5)), r"input must have shape \(\*, 4\)"),
        (lambda: ComplexLayerNorm(1), "normalized_shape must have at least 2 places, got 1"),
        (lambda: ComplexGroupNorm(4, 6), "num_channels must be divisible by num_groups = 4, got 6"),
        (lambda: ComplexGroupNorm(3, 3)(ellipse(2, 3)), "covariance of a group needs at least 2 values"),
        (lambda: ComplexGroupNorm(1, 3)(torch.randn(2, 3)), "input must be complex"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_one_sample_is_fine_in_eval_mode() -> None:
    layer = ComplexBatchNorm2d(3, dtype=DOUBLE).eval()
    assert layer(ellipse(1, 3, 1, 1)).shape == (1, 3, 1, 1)
