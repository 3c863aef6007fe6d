"""Tests of ``netwright.layers.evonorm``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from netwright.cost import count_params, saved_bytes
from netwright.layers.evonorm import (
    KINDS,
    EvoNormB0,
    EvoNormB1,
    EvoNormB2,
    EvoNormS0,
    EvoNormS1,
    EvoNormS2,
    Kind,
    replace_norm_act,
)
from netwright.models.vision.mbconv import efficientnet_b0
from netwright.models.vision.resnet_v2 import resnet_v2_50d

LAYERS = {"B0": EvoNormB0, "B1": EvoNormB1, "B2": EvoNormB2, "S0": EvoNormS0, "S1": EvoNormS1, "S2": EvoNormS2}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: Kind, channels: int = 4, dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    """A layer with random parameters."""
    if kind.startswith("S"):
        options.setdefault("groups", 2)
    layer = LAYERS[kind](channels, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    return layer


def reference(kind: Kind, layer: nn.Module, x: Tensor, batch_variance: Tensor) -> Tensor:
    """The formulas of the paper, one sample and one channel at a time."""
    out = torch.empty_like(x)
    eps, gamma, beta = layer.eps, layer.weight.detach(), layer.bias.detach()
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            one = x[b, c]
            if kind.startswith("S"):
                size = x.shape[1] // layer.groups
                group = x[b, c // size * size : (c // size + 1) * size]
                v = layer.v[c].item() if kind == "S0" else 1.0
                power = (group**2).mean() if kind == "S2" else ((group - group.mean()) ** 2).mean()
                value = one / (1 + torch.exp(-v * one)) / torch.sqrt(power + eps)
            else:
                left = torch.sqrt(batch_variance[c] + eps)
                rms = torch.sqrt((one**2).mean() + eps)
                right = {
                    "B0": lambda one=one, c=c: (
                        layer.v[c].item() * one + torch.sqrt(((one - one.mean()) ** 2).mean() + eps)
                    ),
                    "B1": lambda one=one, rms=rms: (one + 1) * rms,
                    "B2": lambda one=one, rms=rms: rms - one,
                }[kind]()
                value = one / torch.maximum(left, right)
            out[b, c] = value * gamma[c] + beta[c]
    return out


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_are_the_published_formulas(kind: Kind, dtype: torch.dtype) -> None:
    layer = make(kind, dtype=dtype)
    x = torch.randn(3, 4, 5, 2, dtype=dtype) * 2 + 1
    variance = ((x - x.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3))
    torch.testing.assert_close(layer(x), reference(kind, layer, x, variance))
    if kind.startswith("B"):
        samples = 3 * 5 * 2
        torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance * samples / (samples - 1))
        torch.testing.assert_close(layer.eval()(x), reference(kind, layer, x, layer.running_var))


def test_s1_is_silu_over_the_deviation_of_the_group() -> None:
    x = torch.randn(2, 4, 3, 3)
    std = (x.view(2, 2, -1).var(-1, correction=0) + 1e-5).sqrt().repeat_interleave(2, 1)[..., None, None]
    torch.testing.assert_close(EvoNormS1(4, groups=2)(x), nn.functional.silu(x) / std)


def test_with_a_slope_of_0_both_leading_layers_are_linear_but_for_the_scale() -> None:
    x = torch.randn(2, 4, 3, 3)
    s0, b0 = EvoNormS0(4, groups=2), EvoNormB0(4)
    nn.init.zeros_(s0.v)
    nn.init.zeros_(b0.v)
    std_group = (x.view(2, 2, -1).var(-1, correction=0) + 1e-5).sqrt().repeat_interleave(2, 1)[..., None, None]
    torch.testing.assert_close(s0(x), x / (2 * std_group))
    std_batch = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    std_instance = (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(b0(x), x / torch.maximum(std_batch, std_instance))


@given(scale=st.floats(0.1, 100.0))
def test_b0_does_not_see_the_scale_of_its_input(scale: float) -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = EvoNormB0(4, eps=1e-12, dtype=torch.float64)
    torch.testing.assert_close(layer(scale * x), layer(x), rtol=1e-6, atol=1e-8)


def test_s0_sees_the_scale_of_its_input() -> None:
    x = torch.randn(2, 4, 3, 3)
    layer = EvoNormS0(4, groups=2)
    assert not torch.allclose(layer(3 * x), layer(x), atol=0.1)


@pytest.mark.parametrize("kind", ["S0", "S1", "S2"])
def test_the_sample_series_does_not_care_about_the_batch(kind: Kind) -> None:
    layer, x = make(kind), torch.randn(5, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.cat([layer(one) for one in x.split(1)]))
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "slope"),
    [*((kind, 0.7) for kind in KINDS), *((kind, slope) for kind in ("S0", "B0") for slope in (0.0, -0.02))],
)
def test_gradients_of_all_orders(kind: Kind, training: bool, slope: float) -> None:
    """First order through the fused form, with both ways to sum the gradient of v; second order through the plain."""
    layer = make(kind).train(training)
    names = [name for name, _ in layer.named_parameters()]
    if layer.v is not None:
        nn.init.constant_(layer.v, slope)
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        fresh = {name: buffer.clone() for name, buffer in buffers.items()}
        return functional_call(layer, dict(zip(names, parameters, strict=True)) | fresh, (x,))

    x = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    arguments = (x, *layer.parameters())
    assert gradcheck(function, arguments, fast_mode=True)
    if slope == 0.7:
        assert gradgradcheck(function, arguments, fast_mode=True)


@kinds
def test_fused_and_plain_form_agree_also_in_their_gradients(kind: Kind) -> None:
    """torch.func sees the plain formula, autograd the fused one."""
    layer = make(kind, dtype=torch.float32).eval()
    x, weights = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return (functional_call(layer, parameters, (x,)) * weights).sum()

    parameters = dict(layer.named_parameters())
    plain, plain_x = torch.func.grad(loss, argnums=(0, 1))({n: p.detach() for n, p in parameters.items()}, x)
    x.requires_grad_()
    (loss(parameters, x)).backward()
    torch.testing.assert_close(x.grad, plain_x, rtol=1e-4, atol=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["S0", "S1", "S2", "B0", "B2"])
def test_backward_keeps_nothing_of_the_size_of_the_input_but_the_input(kind: Kind) -> None:
    x = torch.randn(8, 16, 16, 16, requires_grad=True)
    assert saved_bytes(make(kind, 16, torch.float32), x) < 0.05 * x.numel() * x.element_size()


@kinds
def test_a_far_off_mean_and_a_constant_input_do_not_hurt(kind: Kind) -> None:
    layer = make(kind, dtype=torch.float32)
    x = torch.randn(4, 4, 8, 8)
    for case in (x + 100, torch.ones_like(x), torch.zeros_like(x), x * 1e-4):
        variance = case.double().var((0, 2, 3), correction=0)
        expected = reference(kind, layer.double(), case.double(), variance)
        out = layer.float()(case.requires_grad_())
        torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-4)
        (gradient,) = torch.autograd.grad(out.sum(), case)
        assert gradient.isfinite().all()


@kinds
def test_statistics_are_taken_in_single_precision_under_autocast(kind: Kind) -> None:
    layer = make(kind, dtype=torch.float32)
    # the squares of these overflow float16
    x = (1000 * torch.randn(2, 4, 4, 4)).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x.requires_grad_())
        conv = nn.Conv2d(4, 4, 1)(torch.randn(2, 4, 4, 4))
        assert layer(conv).dtype == conv.dtype == torch.bfloat16
    assert out.dtype == torch.float16
    out.float().square().sum().backward()
    assert x.grad.isfinite().all()
    fresh = make(kind, dtype=torch.float32)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer.eval()(x).float(), fresh.eval()(x.float()), rtol=2e-3, atol=2e-3)


@kinds
def test_compiles_in_one_graph(kind: Kind) -> None:
    layer = make(kind, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(compiled(x), layer(x))


@kinds
def test_state_dict_round_trip_and_number_of_parameters(kind: Kind) -> None:
    layer = make(kind, 8)
    layer(torch.randn(2, 8, 3, 3, dtype=torch.float64))
    again = make(kind, 8)
    again.load_state_dict(load(save(layer.state_dict())))
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(again.eval()(x), layer.eval()(x))
    assert count_params(layer) == (24 if kind in {"B0", "S0"} else 16)
    assert [name for name, _ in layer.named_buffers()] == (["running_var"] if kind.startswith("B") else [])


@kinds
def test_without_activation_the_layer_is_affine(kind: Kind) -> None:
    layer = make(kind, apply_act=False)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1))
    assert count_params(layer) == 8


@kinds
def test_bad_inputs_are_refused(kind: Kind) -> None:
    layer = make(kind, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"shape \(batch, channels, height, width\), got shape \(2, 4, 3\)"):
        layer(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match=r"dimension 1 of input must have size 4, got shape \(2, 5, 3, 3\)"):
        layer(torch.randn(2, 5, 3, 3))
    if kind.startswith("B"):
        with pytest.raises(ValueError, match=r"batch·height·width of at least 2, got input of shape \(1, 4, 1, 1\)"):
            layer(torch.randn(1, 4, 1, 1))
        layer.eval()(torch.randn(1, 4, 1, 1))
    else:
        with pytest.raises(ValueError, match="num_features must be divisible by groups = 32, got 48"):
            LAYERS[kind](48)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="eps must be positive"):
        EvoNormS0(32, eps=0.0)
    with pytest.raises(ValueError, match="momentum must be in"):
        EvoNormB0(32, momentum=1.5)
    with pytest.raises(ValueError, match="num_features must be at least 1"):
        EvoNormB1(0)
    with pytest.raises(ValueError, match="unknown kind of EvoNorm 'S9'; known are: B0, B1, B2, S0, S1, S2"):
        replace_norm_act(nn.Sequential(nn.BatchNorm2d(4)), "S9")
    with pytest.raises(ValueError, match="must have a 2-D normalisation"):
        replace_norm_act(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_like_takes_over_what_fits() -> None:
    norm = nn.BatchNorm2d(20, eps=1e-3, momentum=0.2, dtype=torch.float64)
    nn.init.zeros_(norm.weight)
    norm.running_var.fill_(3.0)
    s0, b0 = EvoNormS0.like(norm, groups=8), EvoNormB0.like(norm, apply_act=False)
    assert (s0.groups, s0.eps, s0.weight.dtype, s0.weight.abs().sum().item()) == (5, 1e-3, torch.float64, 0.0)
    assert (b0.momentum, b0.running_var[0].item(), b0.v) == (0.2, 3.0, None)
    plain = EvoNormS2.like(nn.InstanceNorm2d(6))
    assert (plain.groups, plain.weight.sum().item()) == (6, 6.0)
    assert EvoNormB1.like(nn.GroupNorm(2, 6)).num_features == 6


def test_a_whole_network_has_the_published_size() -> None:
    with torch.device("meta"):
        built = resnet_v2_50d(norm_act=lambda channels, act: EvoNormS0(channels, apply_act=act))
        replaced = replace_norm_act(resnet_v2_50d(), "S0", groups=32)
    assert count_params(built) == count_params(replaced) == 25_591_368
    assert not any(isinstance(module, nn.ReLU) for module in replaced.modules())
    assert replaced(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("kind", ["S0", "B0"])
def test_in_efficientnet_only_the_activations_of_the_squeeze_excites_stay(kind: Kind) -> None:
    with torch.device("meta"):
        model = replace_norm_act(efficientnet_b0(), kind)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.SiLU)]
    assert len(names) == 16
    assert all(name.endswith(".act") for name in names)


def test_one_layer_learns() -> None:
    """Gradient descent through a replaced network reaches a small loss."""
    model = replace_norm_act(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)),
        "S0",
        4,
    )
    x = torch.randn(32, 1, 4, 4)
    targets = (x.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * math.log(2)


@pytest.mark.parametrize("kind", ["S0", "B0"])
def test_gradients_of_float32_parameters_are_not_rounded_to_the_type_of_a_half_precision_input(kind: str) -> None:
    layer = {"S0": lambda: EvoNormS0(8, groups=4), "B0": lambda: EvoNormB0(8)}[kind]()
    x = torch.randn(4, 8, 6, 6).bfloat16()
    grad = torch.randn(4, 8, 6, 6).bfloat16()
    half = torch.autograd.grad(layer(x), list(layer.parameters()), grad)
    full = torch.autograd.grad(layer(x.float()), list(layer.parameters()), grad.float())
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
