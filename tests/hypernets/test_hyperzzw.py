"""Tests of ``netwright.hypernets.hyperzzw``."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from netwright.cost import count_params
from netwright.hypernets.hyperzzw import (
    RGU,
    BatchStd,
    GroupBatchInstanceStd,
    HyperChannelInteraction,
    HyperInteraction,
    HyperZZWLocal,
    MagnetKernel,
    SlowNetChannel,
    SlowNetGlobal,
    SlowNetLocal,
    hyperzzw_elementwise,
    hyperzzw_global,
    slow_neural_loss,
)

DOUBLE = torch.float64


def perturb(module: nn.Module) -> nn.Module:
    """Move all parameters off their special first values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def grid(*size: int) -> Tensor:
    axes = [torch.linspace(-1, 1, axis, dtype=DOUBLE) for axis in size]
    return torch.cartesian_prod(*axes).reshape(-1, len(size))


def hidden_by_point(net: MagnetKernel, c: Tensor) -> Tensor:
    h = torch.sin(net.frequencies[0] @ c + net.phases[0])
    row = int((grid(*net.size) - c).abs().sum(1).argmin())
    for i in range(net.n_layers):
        sine = torch.sin(net.frequencies[i + 1] @ c + net.phases[i + 1])
        h = sine * (net.hidden_weight[i] @ h + net.hidden_bias[i]) + net.position_bias.flatten()[row]
    return h


@pytest.mark.parametrize("size", [(5,), (1,), (3, 4)])
def test_the_kernel_is_the_network_at_every_point_of_the_grid(size: tuple[int, ...]) -> None:
    net = MagnetKernel(len(size), hidden=6, out_channels=3, n_layers=2, omega0=0.3, size=size, dtype=DOUBLE)
    perturb(net)
    points = [net.output_weight @ hidden_by_point(net, c) + net.output_bias for c in grid(*size)]
    torch.testing.assert_close(net().flatten(1), torch.stack(points, dim=1))


def test_initial_values() -> None:
    net = MagnetKernel(2, hidden=2000, out_channels=4, n_layers=1, omega0=7.0, size=(3, 5), alpha=6.0)
    scales = net.frequencies.abs().mean((1, 2)) / (2 * math.pi * 7 * 0.5 / math.sqrt(2))
    torch.testing.assert_close(scales, torch.tensor([6.0, 3.0]), rtol=0.05, atol=0)  # means of Gamma(6) and Gamma(3)
    assert net.hidden_weight.abs().max() <= math.sqrt(3 / 2000)
    assert net.hidden_weight.std().item() == pytest.approx(1 / math.sqrt(2000), rel=0.01)
    assert net.output_weight.std().item() == pytest.approx(1 / math.sqrt(2000 * 15), rel=0.03)
    assert (net.hidden_bias == 1).all()
    assert not any(zero.any() for zero in (net.phases, net.position_bias, net.output_bias))


@settings(max_examples=8)
@given(channels=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 6), layers=st.integers(1, 3))
def test_shapes_and_counts(channels: int, height: int, width: int, layers: int) -> None:
    with torch.device("meta"):
        flat = SlowNetGlobal(channels, (height, width), hidden=8, n_layers=layers)
        line = SlowNetGlobal(channels, height, ndim=1, hidden=8, n_layers=layers)
        of_channels = SlowNetChannel(channels, hidden=8, n_layers=layers)
    assert flat().shape == (1, channels, height, width)
    assert line().shape == (1, channels, height)
    assert of_channels().shape == (1, channels)
    common = layers * 72 + 9 * channels
    assert count_params(flat) == common + (layers + 1) * 24 + height * width
    assert count_params(line) == common + (layers + 1) * 16 + height
    assert count_params(of_channels) == layers * 72 + 9 + (layers + 1) * 16 + channels


def reference_local(net: SlowNetLocal, x: Tensor) -> Tensor:
    """The kernel from a batch, position by position of the definition."""
    pooled = functional.adaptive_avg_pool2d(x, net.size).flatten(2)
    reduced = (torch.einsum("hc,bcp->bhp", net.reduce_weight, pooled) + net.reduce_bias[:, None]).mean(0)
    g = functional.gelu(net.context_weight @ reduced + net.context_bias[:, None])
    c = grid(*net.size).T
    h = torch.sin(net.frequencies[0] @ c + net.phases[0, :, None])
    for i in range(net.n_layers):
        sine = torch.sin(net.frequencies[i + 1] @ c + net.phases[i + 1, :, None])
        h = sine * (net.hidden_weight[i] @ h + net.hidden_bias[i, :, None]) + net.position_bias.flatten()
        unit = h / h.norm(dim=1, keepdim=True)
        h = net.alphas[i, :, None] * h.detach() + net.betas[i, :, None] * unit
        h = h * (net.gate_weight[i] @ g + net.gate_bias[i, :, None])
    kernel = net.output_weight @ h + net.output_bias[:, None]
    return kernel.view(-1, 1, *net.size)


class TestLocalKernel:
    @pytest.fixture
    def net(self) -> SlowNetLocal:
        net = SlowNetLocal(4, (3, 5), hidden=6, n_layers=3, omega0=0.3, dtype=DOUBLE)
        perturb(net)
        return net

    def test_values_and_gradients(self, net: SlowNetLocal) -> None:
        x = torch.randn(3, 4, 8, 7, dtype=DOUBLE, requires_grad=True)
        weights = torch.randn(4, 1, 3, 5, dtype=DOUBLE)
        inputs = [x, *net.parameters()]
        kernel, expected = net(x), reference_local(net, x)
        torch.testing.assert_close(kernel, expected)
        gradients = torch.autograd.grad((kernel * weights).sum(), inputs)
        torch.testing.assert_close(gradients, torch.autograd.grad((expected * weights).sum(), inputs))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)

    def test_a_sample_alone_is_a_batch_of_one(self, net: SlowNetLocal) -> None:
        net.eval()
        x = torch.randn(3, 4, 8, 7, dtype=DOUBLE)
        alone = torch.stack([net(sample[None]) for sample in x])
        net.context = "sample"
        torch.testing.assert_close(net(x), alone)

    def test_the_order_of_the_batch_does_not_matter_but_its_members_do(self, net: SlowNetLocal) -> None:
        x = torch.randn(3, 4, 8, 7, dtype=DOUBLE)
        torch.testing.assert_close(net(x.flip(0)), net(x))
        assert not torch.allclose(net(x[:2]), net(x))

    def test_no_gradient_flows_through_what_is_renormalised_by_a(self) -> None:
        net = SlowNetLocal(4, 3, hidden=6, n_layers=1, omega0=0.3)
        nn.init.zeros_(net.betas)
        net(torch.randn(2, 4, 8, 8)).sum().backward()
        assert not net.hidden_weight.grad.any()
        assert not net.frequencies.grad.any()
        assert net.alphas.grad.all()

    def test_the_release_forgets_the_scalars(self) -> None:
        torch.manual_seed(1)
        net = SlowNetLocal(4, 3, hidden=6)
        torch.manual_seed(1)
        release = SlowNetLocal(4, 3, hidden=6, faithful_release=True)
        x = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(release(x), net(x))
        assert count_params(net) - count_params(release) == 2 * 2 * 6


NETS: dict[str, Callable[..., MagnetKernel]] = {
    "global": lambda **options: SlowNetGlobal(3, 4, hidden=6, omega0=0.3, **options),
    "line": lambda **options: SlowNetGlobal(3, 4, ndim=1, hidden=6, omega0=0.3, **options),
    "channel": lambda **options: SlowNetChannel(5, hidden=6, omega0=0.3, **options),
    "local": lambda **options: SlowNetLocal(3, 3, hidden=6, omega0=0.3, n_layers=1, **options),
}


class TestKeptKernel:
    @pytest.fixture(params=["global", "local"])
    def net(self, request: pytest.FixtureRequest) -> MagnetKernel:
        return NETS[request.param]().eval()

    def check(self, net: MagnetKernel) -> None:
        """What is kept is, to the bit, what is built."""
        with torch.no_grad():
            assert all(map(torch.equal, net._keep(), net._build()))

    @torch.no_grad()
    def test_is_built_once(self, net: MagnetKernel) -> None:
        assert net._keep()[0] is net._keep()[0]

    def test_reaches_the_parameters_where_a_gradient_is_wanted(self, net: MagnetKernel) -> None:
        self.check(net)
        net._keep()[0].sum().backward()
        assert net.frequencies.grad is not None

    @pytest.mark.parametrize(
        "change",
        [
            lambda net: net.hidden_weight.mul_(2),
            lambda net: net.position_bias[0].add_(1),
            lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
            lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}, assign=True),
            lambda net: net.to(torch.float64 if net.phases.dtype == torch.float32 else torch.float32),
            lambda net: setattr(net, "phases", nn.Parameter(torch.randn_like(net.phases))),
            lambda net: setattr(net.phases, "data", net.phases.data + 2),
            lambda net: (net.train(), net.phases.data.add_(2), net.eval()),
            lambda net: net.reset_parameters(),
        ],
    )
    @torch.no_grad()
    def test_follows_every_change(self, net: MagnetKernel, change: Callable[[MagnetKernel], object]) -> None:
        for _ in range(2):  # a freed block of memory may come back at the same place
            before = net._keep()[0]
            change(net)
            self.check(net)
            now = net._keep()[0]
            assert now.dtype != before.dtype or not torch.equal(now, before)

    @torch.no_grad()
    def test_a_copy_keeps_its_own(self, net: MagnetKernel) -> None:
        self.check(net)
        other = copy.deepcopy(net)
        other.phases.add_(1)
        self.check(other)
        self.check(net)
        assert not torch.equal(other._keep()[0], net._keep()[0])

    def test_of_inference_mode_serves_gradients_later(self, net: MagnetKernel) -> None:
        net.requires_grad_(False)
        with torch.inference_mode():
            net._keep()
        x = torch.ones((), requires_grad=True)
        (net._keep()[0] * x).sum().backward()
        torch.testing.assert_close(x.grad, net._build()[0].sum())

    def test_is_left_alone_by_functional_calls(self, net: MagnetKernel) -> None:
        self.check(net)
        doubled = {name: 2 * parameter.detach() for name, parameter in net.named_parameters()}
        x = (torch.randn(2, 3, 8, 8),) if isinstance(net, SlowNetLocal) else ()
        with torch.no_grad():
            before = net(*x)
            assert not torch.allclose(torch.func.functional_call(net, doubled, x), before)
            assert torch.equal(net(*x), before)


@pytest.mark.parametrize("name", NETS)
def test_slow_networks_everywhere(name: str, tmp_path: Path) -> None:
    net = NETS[name]()
    x = (torch.randn(2, 3, 8, 8),) if name == "local" else ()
    kernel = net(*x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(*(t.bfloat16().float() for t in x)), net(*(t.bfloat16() for t in x)))
        net(*x).sum().backward()
    assert {p.grad.dtype for p in net.parameters()} == {torch.float32}
    with torch.device("meta"):
        assert NETS[name]()(*(torch.empty(t.shape) for t in x)).shape == kernel.shape
    on_meta = NETS[name](device="meta").to_empty(device="cpu")
    on_meta.reset_parameters()
    assert torch.isfinite(on_meta(*x)).all()
    save_model(net, str(tmp_path / "net.safetensors"))
    again = NETS[name]().eval()
    again(*x)
    load_model(again, str(tmp_path / "net.safetensors"))
    torch.testing.assert_close(again(*x), kernel)


@given(batch=st.integers(1, 3), channels=st.integers(1, 3), size=st.integers(1, 5))
def test_the_global_operator_is_a_matrix_product_for_each_sample_and_channel(
    batch: int, channels: int, size: int
) -> None:
    z, fast = torch.randn(2, batch, channels, size, size, dtype=DOUBLE)
    w = torch.randn(1, channels, size, size, dtype=DOUBLE)
    out = hyperzzw_global(z, w, fast)
    for b in range(batch):
        for c in range(channels):
            torch.testing.assert_close(out[b, c], (z[b, c] * w[0, c]) @ fast[b, c])


def test_operators_on_sequences_and_channels() -> None:
    z, w, fast = torch.randn(2, 3, 7), torch.randn(1, 3, 7), torch.randn(2, 3, 7)
    torch.testing.assert_close(hyperzzw_global(z, w, fast), z * w * fast)
    torch.testing.assert_close(hyperzzw_elementwise(z, w), z * z * w)


@given(pairs=st.integers(1, 3), channels=st.integers(1, 3), offset=st.floats(-5, 5), line=st.booleans())
def test_standardisation_in_groups(pairs: int, channels: int, offset: float, line: bool) -> None:
    groups, shape = 2 * pairs, (8,) if line else (4, 3)
    layer = GroupBatchInstanceStd(groups * channels, groups)
    x = offset + 3 * torch.randn(5, groups * channels, *shape)
    parts = []
    for i, part in enumerate(x.chunk(groups, dim=1)):
        axes = (2, *range(3, x.ndim)) if i % 2 else (0, 2, *range(3, x.ndim))
        deviation = (part.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()
        parts.append((part - part.mean(axes, keepdim=True)) / deviation)
    y = layer(x)
    torch.testing.assert_close(y, torch.cat(parts, 1), atol=1e-4, rtol=1e-4)
    assert y.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-5
    assert list(layer.parameters()) == []


def test_standardisation_depends_on_the_batch_unless_it_keeps_running_statistics() -> None:
    x = 2 + torch.randn(6, 4, 3, 3)
    method = GroupBatchInstanceStd(4, 2).eval()
    assert not torch.allclose(method(x[:3]), method(x)[:3])
    layer = GroupBatchInstanceStd(4, 2, track_running_stats=True, momentum=0.5)
    layer(x)
    mean = x[:, :2].mean((0, 2, 3))
    torch.testing.assert_close(layer.batch_std.running_mean, 0.5 * mean)
    layer.eval()
    torch.testing.assert_close(layer(x[:1]), layer(x)[:1])
    again = GroupBatchInstanceStd(4, 2, track_running_stats=True)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again.eval()(x), layer(x))
    layer.batch_std.reset_parameters()
    torch.testing.assert_close(layer(x)[:, :2], x[:, :2] / math.sqrt(1 + 1e-5))


def test_recursive_gated_unit() -> None:
    unit = perturb(RGU(3, 4)).double()
    x = torch.randn(2, 3, 4, 4, dtype=DOUBLE)
    pixels = x.flatten(2)
    weight, bias = unit.key_value.weight.flatten(1), unit.key_value.bias[:, None]
    key, value = weight[:3] @ pixels + bias[:3], weight[3:] @ pixels + bias[3:]
    gate = key * (unit.query.weight.flatten(1) @ value + unit.query.bias[:, None])
    gate = (gate - gate.mean(2, keepdim=True)) / (gate.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    q = functional.gelu(gate) + unit.position_bias.flatten()
    expected = unit.output.weight.flatten(1) @ q + unit.output.bias[:, None]
    torch.testing.assert_close(unit(x).flatten(2), expected)


@pytest.mark.parametrize("map", [(5,), (4, 4)])
def test_interactions(map: tuple[int, ...]) -> None:
    ndim, x, o = len(map), torch.randn(2, 3, *map), torch.randn(2, 3, *map)
    ones = (1,) * ndim
    channel = HyperChannelInteraction(3, hidden=4)
    y = x.flatten(2).mean(2)
    torch.testing.assert_close(channel(x), x * torch.sigmoid(channel.slow_net() * y**2).view(2, 3, *ones))
    both = HyperInteraction(3, map, ndim)
    spatial = both.slow_net_spatial() * o.mean(1, keepdim=True) ** 2
    by_channel = both.slow_net_channel() * o.flatten(2).mean(2) ** 2
    torch.testing.assert_close(both(o, x), x * torch.sigmoid(spatial * by_channel.view(2, 3, *ones)))
    for net in (channel.slow_net, both.slow_net_channel):
        nn.init.zeros_(net.output_weight)
    torch.testing.assert_close(channel(x), x / 2)
    torch.testing.assert_close(both(o, x), x / 2)


@pytest.mark.parametrize("context", ["batch", "sample"])
@pytest.mark.parametrize(
    ("kernel", "dilation", "mode"), [(3, 1, "zeros"), ((3, 5), (2, 1), "zeros"), (3, 2, "circular"), (5, 1, "zeros")]
)
def test_local_operator(
    kernel: int | tuple[int, ...], dilation: int | tuple[int, ...], mode: str, context: str
) -> None:
    layer = HyperZZWLocal(
        4, kernel, out_channels=6, dilation=dilation, groups=2, padding_mode=mode, context=context, hidden=5
    )
    nn.init.constant_(layer.shift, 0.5)
    source, z = torch.randn(3, 4, 8, 7), torch.randn(3, 4, 8, 7)
    twin = nn.Conv2d(4, 4, kernel, padding="same", dilation=dilation, groups=4, bias=False, padding_mode=mode)
    kernels = layer.slow_net(source)
    outs = []
    for b in range(3):
        with torch.no_grad():
            twin.weight.copy_(kernels if context == "batch" else kernels[b])
        outs.append(twin(z[b : b + 1]))
    mixed = layer.channel_mixer(torch.cat(outs))
    standard = functional.batch_norm(mixed, None, None, training=True)
    torch.testing.assert_close(layer(source, z), functional.gelu(standard) + 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(z), layer(z, z))


def test_local_operator_on_sequences() -> None:
    layer = HyperZZWLocal(2, 3, ndim=1, context="sample")
    x = torch.randn(3, 2, 9)
    kernels = layer.slow_net(x)
    out = torch.stack([functional.conv1d(x[b], kernels[b], padding=1, groups=2) for b in range(3)])
    expected = functional.batch_norm(layer.channel_mixer(out), None, None, training=True)
    torch.testing.assert_close(layer(x), functional.gelu(expected), atol=1e-5, rtol=1e-4)


@given(factors=st.lists(st.integers(1, 3), min_size=1, max_size=3), channels=st.integers(1, 3), line=st.booleans())
def test_slow_neural_loss(factors: list[int], channels: int, line: bool) -> None:
    sizes = [channels * math.prod(factors[:i]) for i in range(len(factors) + 1)]
    kernels = [torch.randn(1, size, *((5,) if line else (3, 3)), dtype=DOUBLE) for size in sizes]
    tiled, summed = torch.zeros((), dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)
    for deep in range(len(kernels)):
        for shallow in range(deep):
            tile = torch.cat([kernels[shallow]] * (sizes[deep] // sizes[shallow]), dim=1)
            tiled += functional.mse_loss(tile, kernels[deep])
            summed += functional.mse_loss(kernels[shallow].sum(1), kernels[deep].sum(1))
    torch.testing.assert_close(slow_neural_loss(kernels, factors), tiled)
    torch.testing.assert_close(slow_neural_loss(kernels), tiled)
    torch.testing.assert_close(slow_neural_loss(kernels, variant="channel-sum"), summed)
    same = [kernels[0].repeat(1, size // channels, *(1,) * (kernels[0].ndim - 2)) for size in sizes]
    assert slow_neural_loss(same) == 0


def test_gradients_in_double_precision() -> None:
    z, fast = (torch.randn(2, 2, 3, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    w = torch.randn(1, 2, 3, 3, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(hyperzzw_global, (z, w, fast))
    assert gradcheck(GroupBatchInstanceStd(2, 2), (z,))
    # no gradient flows through some of the slow network by definition; with one product the input is not concerned
    local = HyperZZWLocal(2, 3, hidden=3, n_layers=1, omega0=0.3, dtype=DOUBLE)
    assert gradcheck(local, (z, fast))
    assert gradcheck(RGU(2, 3, dtype=DOUBLE), (z,))
    assert gradcheck(HyperInteraction(2, 3, omega0=0.3, dtype=DOUBLE), (z, fast))
    net = perturb(MagnetKernel(2, 3, 2, 2, 0.3, 3, dtype=DOUBLE))
    parameters = dict(net.named_parameters())

    def kernel(*values: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(parameters, values, strict=True)), ())

    assert gradcheck(kernel, tuple(parameters.values()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MagnetKernel(3, 4, 2, 1), r"ndim must be in \[1, 2\], got 3"),
        (lambda: MagnetKernel(2, 4, 2, 0), "n_layers must be at least 1, got 0"),
        (lambda: MagnetKernel(2, 0, 2, 1), "hidden must be at least 1, got 0"),
        (lambda: MagnetKernel(2, 4, 0, 1), "out_channels must be at least 1, got 0"),
        (lambda: MagnetKernel(2, 4, 2, 1, 0.0), "omega0 must be positive"),
        (lambda: MagnetKernel(2, 4, 2, 1, alpha=0.0), "alpha must be positive"),
        (lambda: MagnetKernel(2, 4, 2, 1, size=(3, 3, 3)), "size must be a number or 2 numbers"),
        (lambda: MagnetKernel(2, 4, 2, 1, size=0), "size must be at least 1, got 0"),
        (lambda: SlowNetLocal(4, 4), "kernel_size must be odd, got 4"),
        (lambda: SlowNetLocal(4, 3, context="bach"), "unknown context 'bach'; did you mean 'batch'"),  # type: ignore[arg-type]
        (lambda: SlowNetLocal(4, 3)(torch.randn(1, 4, 8, 8)), "needs at least 2 samples in training, got a batch of 1"),
        (lambda: SlowNetLocal(4, 3)(torch.randn(4, 8, 8)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: SlowNetLocal(4, 3)(torch.randn(2, 3, 8, 8)), "dimension 1 of input must have size 4"),
        (lambda: HyperZZWLocal(4, 3)(torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)), "dimension 1 of input"),
        (lambda: hyperzzw_global(*torch.randn(3, 1, 2, 4, 5)), "needs square maps .* got 4×5"),
        (lambda: hyperzzw_global(*torch.randn(3, 4, 4)), "z must have shape"),
        (
            lambda: hyperzzw_global(torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 2, 4, 4)),
            r"w and fast must fit z of shape \(1, 2, 4, 4\), got shapes \(1, 3, 4, 4\) and",
        ),
        (lambda: GroupBatchInstanceStd(20), "channels must be divisible by groups = 12, got 20"),
        (lambda: GroupBatchInstanceStd(9, 3), "groups must be even, got 3"),
        (lambda: GroupBatchInstanceStd(4, 2)(torch.randn(1, 4, 3, 3)), "at least 2 samples in training, got a batch"),
        (lambda: GroupBatchInstanceStd(4, 2)(torch.randn(2, 8, 3, 3)), "dimension 1 of input must have size 4"),
        (lambda: GroupBatchInstanceStd(4, 2)(torch.randn(2, 4)), "input must have shape"),
        (lambda: RGU(4, 3, ndim=3), r"ndim must be in \[1, 2\], got 3"),
        (lambda: HyperChannelInteraction(4)(torch.randn(2, 3, 4, 4)), "dimension 1 of input must have size 4"),
        (lambda: HyperInteraction(4, 4)(*torch.randn(2, 2, 3, 4, 4)), "dimension 1 of scores must have size 4"),
        (lambda: slow_neural_loss([torch.zeros(1, 3, 4, 4)]), "kernels of at least 2 blocks, got 1"),
        (lambda: slow_neural_loss(torch.zeros(2, 1, 3, 4, 4), variant="sum"), "unknown variant of the slow neural"),  # type: ignore[arg-type]
        (
            lambda: slow_neural_loss([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 5)]),
            "kernels must have the same size",
        ),
        (
            lambda: slow_neural_loss([torch.zeros(1, 3, 4), torch.zeros(1, 12, 4)], factors=(3,)),
            "kernel 1 must have 3 · 3 channels, got 12",
        ),
        (
            lambda: slow_neural_loss([torch.zeros(1, 3, 4), torch.zeros(1, 4, 4)]),
            "channels of kernel 1 must be divisible by those of an earlier one = 3, got 4",
        ),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_representation() -> None:
    assert "3×3, 4 channels, hidden=32, n_layers=2, context='batch'" in repr(SlowNetLocal(4, 3))
    assert "24, groups=12" in repr(GroupBatchInstanceStd(24))
    assert repr(BatchStd(4)) == "BatchStd(4, track_running_stats=False)"
