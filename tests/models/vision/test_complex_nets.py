"""Tests of ``netwright.models.vision.complex_resnet`` and ``complex_unet``, and of ``analysis.fair_width`` on them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from netwright.analysis.fair_width import matched_width, matched_widths
from netwright.cost import count_params
from netwright.layers.complex import ComplexConv2d
from netwright.layers.complex_norm import ComplexBatchNorm2d
from netwright.models.vision.complex_resnet import ComplexResNet, Kind, widths_of
from netwright.models.vision.complex_unet import ComplexUNet

kinds = pytest.mark.parametrize("kind", ["real", "real_x2", "complex"])
NETWORKS: list[Callable[..., nn.Module]] = [ComplexResNet, ComplexUNet]


@kinds
def test_complex_pictures_and_pairs_are_the_same(kind: Kind) -> None:
    z = torch.randn(2, 3, 8, 8, dtype=torch.complex64)
    pairs = torch.cat([z.real, z.imag], 1)
    for model in (
        ComplexResNet(8, 4, kind, in_channels=3).eval(),
        ComplexUNet(4, kind, in_channels=3, num_classes=2).eval(),
    ):
        y = model(z)
        assert y.shape == ((2, 10) if isinstance(model, ComplexResNet) else (2, 2, 8, 8))
        assert y.dtype == torch.float32
        torch.testing.assert_close(model(pairs), y)
        y.sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_convolutions_have_twice_the_scalars() -> None:
    with torch.device("meta"):
        for depth in (8, 20):
            real, complex_ = (ComplexResNet(depth, 16, kind) for kind in ("real", "complex"))
            # the first real convolution sees two channels for each complex one
            convolutions = [[m for m in net.modules() if isinstance(m, kind)] for net, kind in
                            ((real, nn.Conv2d), (complex_, ComplexConv2d))]  # fmt: skip
            for one, two in zip(convolutions[0][1:], convolutions[1][1:], strict=True):
                assert count_params(two) == 2 * count_params(one)
            norms = [m for m in complex_.modules() if isinstance(m, ComplexBatchNorm2d)]
            assert sum(map(count_params, norms)) == 5 * sum(norm.num_features for norm in norms)
    assert widths_of("real_x2", 16, 3) == [23, 45, 91]
    assert widths_of("complex", 16, 3) == [16, 32, 64]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("width", [8, 16])
def test_widths_match_within_one_percent(network: Callable[..., nn.Module], width: int) -> None:
    stages = tuple(width * 2**stage for stage in range(3))
    with torch.device("meta"):
        target = count_params(network(width=width, kind="complex"))
        assert count_params(network(width=width, kind="real_x2")) == pytest.approx(target, rel=0.05)
    found = matched_widths(lambda widths: network(width=widths, kind="real_x2"), stages, target)
    with torch.device("meta"):
        assert count_params(network(width=found, kind="real_x2")) == pytest.approx(target, rel=0.01)
    assert found == tuple(pytest.approx(2**0.5 * stage, abs=1.5 + 0.02 * stage) for stage in stages)


@pytest.mark.parametrize("network", NETWORKS)
def test_compiles_as_one_graph_and_round_trips(network: Callable[..., nn.Module]) -> None:
    model = network(width=2, activation="modrelu").eval()
    z = torch.randn(2, 1, 8, 8, dtype=torch.complex64)
    again = network(width=2, activation="modrelu").eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(z), model(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(z), again(z))


@kinds
def test_spectral_unet(kind: Kind) -> None:
    model = ComplexUNet(2, kind, up="spectral", levels=2, activation="zrelu")
    assert model(torch.randn(2, 1, 6, 10, dtype=torch.complex64)).shape == (2, 1, 6, 10)


def test_matched_width_of_any_network() -> None:
    assert matched_width(lambda w: nn.Linear(round(w), 1, bias=False), 37) == 37
    assert matched_width(lambda w: nn.Linear(round(w), 1, bias=False), 5000, high=1e6) == pytest.approx(5000, rel=0.01)
    frozen = lambda w: nn.Linear(round(w), 1).requires_grad_(False)  # noqa: E731
    with pytest.raises(ValueError, match=r"no width between 1 and 4096 has 10 parameters .*, got 0 at the closest"):
        matched_width(frozen, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ComplexResNet(9), "depth must be 6n . 2"),
        (lambda: ComplexResNet(8, 0), "width must be at least 1, got 0"),
        (lambda: ComplexResNet(8, 4, "quaternion"), "unknown kind of network 'quaternion'"),  # type: ignore[arg-type]
        (lambda: ComplexResNet(8, 4, activation="rely"), "unknown complex activation 'rely'"),
        (lambda: ComplexUNet(up="sinc"), "unknown way up 'sinc'"),  # type: ignore[arg-type]
        (lambda: ComplexUNet(levels=0), "levels must be at least 1, got 0"),
        (lambda: ComplexUNet()(torch.randn(1, 1, 8, 6, dtype=torch.complex64)), "width must be divisible by .* = 4"),
        (lambda: ComplexUNet()(torch.randn(1, 8, 8)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: matched_width(lambda w: nn.Linear(100 * round(w), 1), 150), "within 1.0%, got 101 at the closest"),
        (lambda: matched_widths(lambda w: nn.Linear(100 * w[0], 1), (1,), 150), "no widths near .* got 101 at the clo"),
        (lambda: matched_widths(lambda w: nn.Linear(1, 1), (), 150), "number of widths must be in"),
        (lambda: ComplexResNet(8, (4, 8)), "width must be a number or 3 numbers"),
        (lambda: matched_width(lambda w: nn.Linear(round(w), 1), 0), "target_params must be at least 1"),
        (lambda: matched_width(lambda w: nn.Linear(round(w), 1), 5, low=4, high=2), "high must be above low = 4"),
        (lambda: matched_width(lambda w: nn.Linear(round(w), 1), 5, tolerance=0), "tolerance must be positive"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
