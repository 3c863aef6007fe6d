"""Tests of ``netwright.layers.lie_conv``."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from netwright.cost import count_params
from netwright.layers.lie_conv import GroupConv2d, GroupMaxPool, LiftingConv2d, ProjectionConv2d, SirenKernel
from netwright.layers.liegroups import SL, SO, GLPlus, LieGroup, Samples

DOUBLE = torch.float64
GROUPS: list[LieGroup] = [SO(2), SL(2), GLPlus(2)]
NAMES = ["SO", "SL", "GL+"]
seeds = st.integers(0, 1_000)


def draw(group: LieGroup, n: int, seed: int) -> Samples:
    return group.sample_pair(n, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def moved(a: Tensor, samples: Samples) -> Samples:
    return Samples(a @ samples.g, samples.inverse @ torch.linalg.inv(a))


def disc(group: LieGroup, point: Tensor) -> float:
    radius = point.norm().item()
    if group.volume_preserving:
        return float(radius <= 1)
    return 1 / (1 + math.exp(-2 * (1 - radius)))


def middles(size: int) -> list[tuple[int, int, Tensor]]:
    """Row, column, and the place (x, y) of every pixel of a window."""
    at = [(2 * i + 1) / size - 1 for i in range(size)]
    return [
        (row, column, torch.tensor([at[column], at[row]], dtype=DOUBLE))
        for row, column in itertools.product(range(size), repeat=2)
    ]


@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_kernels_by_definition(group: LieGroup) -> None:
    """Pixel by pixel and sample by sample, with the factors of the invariant measure and the disc."""
    k, first, second = 3, draw(group, 3, 0), draw(group, 2, 1)
    lift = LiftingConv2d(group, 3, 2, 3, k, hidden=5, dtype=DOUBLE)
    conv = GroupConv2d(group, 2, 2, 3, k, hidden=5, dtype=DOUBLE)
    project = ProjectionConv2d(group, 2, 2, 3, k, hidden=5, dtype=DOUBLE)
    for i, inverse in enumerate(first.inverse):
        for row, column, u in middles(k):
            point = inverse @ u
            expected = abs(torch.linalg.det(inverse)) * disc(group, point) * lift.kernel(point)
            torch.testing.assert_close(lift.weight(first)[:, i, :, row * k + column], expected)
            expected = abs(torch.linalg.det(inverse)) * disc(group, point) * project.kernel(point)
            torch.testing.assert_close(project.weight(first)[:, :, i, row * k + column], expected)
    for (j, inverse), (i, h) in itertools.product(enumerate(second.inverse), enumerate(first.g)):
        for row, column, u in middles(k):
            point = inverse @ u
            coordinates = torch.cat((point, group.xi_inv(inverse @ h)))
            expected = disc(group, point) / abs(torch.linalg.det(h)) * conv.kernel(coordinates)
            torch.testing.assert_close(conv.weight(first, second)[:, j, :, i, row * k + column], expected)


def test_layers_by_definition() -> None:
    """The sums over input samples are those of one convolution a sample."""
    group = GLPlus(2)
    first, second = draw(group, 3, 0), draw(group, 4, 1)
    x, maps = torch.randn(2, 2, 7, 8, dtype=DOUBLE), torch.randn(2, 2, 3, 7, 8, dtype=DOUBLE)
    lift = LiftingConv2d(group, 3, 2, 5, 3, stride=2, padding=1, dtype=DOUBLE)
    conv = GroupConv2d(group, 4, 2, 5, 3, padding=1, dtype=DOUBLE)
    project = ProjectionConv2d(group, 3, 2, 5, 3, dtype=DOUBLE)
    for layer in (lift, conv, project):
        nn.init.normal_(layer.bias)
    weight = lift.weight(first).unflatten(-1, (3, 3))
    expected = [functional.conv2d(x, weight[:, i], lift.bias, 2, 1) for i in range(3)]
    torch.testing.assert_close(lift(x, first), torch.stack(expected, 2))
    weight = conv.weight(first, second).unflatten(-1, (3, 3))
    expected = [
        conv.bias.view(-1, 1, 1)
        + sum(functional.conv2d(maps[:, :, i], weight[:, j, :, i], padding=1) for i in range(3))
        for j in range(4)
    ]
    torch.testing.assert_close(conv(maps, first, second), torch.stack(expected, 2))
    weight = project.weight(first).unflatten(-1, (3, 3))
    total = sum(functional.conv2d(maps[:, :, i], weight[:, :, i]) for i in range(3))
    torch.testing.assert_close(project(maps, first), total + project.bias.view(-1, 1, 1))


@given(seed=seeds, turns=st.integers(1, 3), kernel_size=st.sampled_from([2, 3, 5]))
@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_quarter_turns_of_picture_and_samples_turn_the_maps(
    group: LieGroup, seed: int, turns: int, kernel_size: int
) -> None:
    """Moved by a, the maps over the samples a g are the old ones, moved: exactly, where pixels fall onto pixels."""
    torch.manual_seed(seed)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)  # rows point down
    a = torch.linalg.matrix_power(quarter, turns)
    x = torch.randn(1, 2, 14, 14, dtype=DOUBLE)
    x_moved = x.rot90(turns, (-2, -1))
    lift = LiftingConv2d(group, 3, 2, 3, kernel_size, dtype=DOUBLE)
    conv = GroupConv2d(group, 4, 3, 2, kernel_size, dtype=DOUBLE)
    project = ProjectionConv2d(group, 4, 2, 3, kernel_size, dtype=DOUBLE)
    first, second = draw(group, 3, seed), draw(group, 4, seed + 1)
    first_moved, second_moved = moved(a, first), moved(a, second)
    one, other = lift(x, first), lift(x_moved, first_moved)
    torch.testing.assert_close(other, one.rot90(turns, (-2, -1)))
    one, other = conv(one, first, second), conv(other, first_moved, second_moved)
    torch.testing.assert_close(other, one.rot90(turns, (-2, -1)))
    torch.testing.assert_close(project(other, second_moved), project(one, second).rot90(turns, (-2, -1)))


def smooth(a: Tensor | None = None, size: int = 41) -> Tensor:
    """A sum of wide spots, moved by a: f(a⁻¹ x)."""
    at = torch.arange(size, dtype=DOUBLE) - size // 2
    places = torch.stack((at.expand(size, size), at[:, None].expand(size, size)), -1)
    if a is not None:
        places = places @ torch.linalg.inv(a).mT
    spots = [((0.0, 0.0), 6.0, 1.0), ((4.0, -2.0), 4.0, -1.0), ((-3.0, 5.0), 5.0, 0.7)]
    return sum(h * torch.exp(-((places - torch.tensor(m, dtype=DOUBLE)) ** 2).sum(-1) / s**2) for m, s, h in spots)[
        None, None
    ]


@pytest.mark.parametrize("group", GROUPS[1:], ids=NAMES[1:])
def test_affine_maps_of_a_smooth_picture_move_the_maps(group: LieGroup) -> None:
    """The factors of the measure are what makes it so: at the middle, which all maps leave where it is."""
    torch.manual_seed(0)
    a = torch.tensor([[1.2, 0.25], [-0.1, 0.95]], dtype=DOUBLE)
    if group.volume_preserving:
        a /= torch.linalg.det(a).sqrt()
    options = {"hidden": 20, "layers": 2, "w0": 2.0, "dtype": DOUBLE}
    lift = LiftingConv2d(group, 2, 1, 4, 21, bias=False, **options)
    conv = GroupConv2d(group, 3, 4, 2, 21, bias=False, **options)
    for layer in (lift, conv):  # kernels that end well within the window, which is cut at its edge else
        layer._disc = lambda points: torch.exp(-6 * points.square().sum(-1))
    first, second = (
        Samples(*(part for part in group.sample_pair(n, torch.Generator().manual_seed(n), dtype=DOUBLE)))
        for n in (2, 3)
    )
    first_moved, second_moved = moved(a, first), moved(a, second)
    one, other = lift(smooth(), first), lift(smooth(a), first_moved)
    centre = one.shape[-1] // 2
    torch.testing.assert_close(
        other[..., centre, centre], one[..., centre, centre], rtol=0, atol=0.02 * one.abs().max().item()
    )
    y = conv(one, first, second)[..., 0, 0]
    y_moved = conv(other, first_moved, second_moved)[..., 0, 0]
    torch.testing.assert_close(y_moved, y, rtol=0, atol=0.02 * y.abs().max().item())


def test_one_pixel_reads_the_group_alone() -> None:
    """With a 1×1 kernel only relations count: moving both samples by the same element changes nothing but det h."""
    group = SL(2)
    layer = GroupConv2d(group, 4, 3, 2, 1, dtype=DOUBLE)
    first, second = draw(group, 5, 0), draw(group, 4, 1)
    a = draw(group, 2, 2).g[1]
    weight = layer.weight(first, second)
    assert weight.shape == (2, 4, 3, 5, 1)
    torch.testing.assert_close(layer.weight(moved(a, first), moved(a, second)), weight)
    assert (weight - weight[:, :1]).abs().max() > 1e-3


def test_start_of_the_kernel_network() -> None:
    kernel = SirenKernel(5, 3, 8, 5)
    assert count_params(kernel) == 5 * 60 + 60 + 2 * (3600 + 60) + 60 * 24 + 24
    assert 0.19 < kernel.first.linear.weight.abs().max() <= 1 / 5
    assert kernel.first.linear.bias.abs().max() <= 1 / math.sqrt(5)
    for layer in kernel.layers:
        assert 0.9 < layer.linear.weight.abs().max() / (math.sqrt(6 / 60) / 10) <= 1
        assert not layer.linear.bias.any()
    bound = math.sqrt(6 / 60) / math.sqrt(3 * 25)
    assert 0.95 < kernel.readout.weight.abs().max() / bound <= 1
    assert not kernel.readout.bias.any()
    parts = torch.randn(4, 1, 2), torch.randn(1, 6, 3)
    whole = torch.cat((parts[0].expand(4, 6, 2), parts[1].expand(4, 6, 3)), -1)
    torch.testing.assert_close(kernel(*parts), kernel(whole))


def test_published_counts() -> None:
    with torch.device("meta"):
        assert count_params(LiftingConv2d(SL(2), 10, 1, 40, 5, bias=False)) == 9_940
        assert count_params(GroupConv2d(SL(2), 10, 40, 40, 5, bias=False)) == 105_280


def test_maximum_over_samples() -> None:
    x = torch.randn(2, 3, 4, 5, 5)
    torch.testing.assert_close(GroupMaxPool()(x), GroupMaxPool()(x[:, :, [2, 0, 3, 1]]))
    assert torch.equal(GroupMaxPool()(x), x.max(2).values)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, channels, samples, height, width\)"):
        GroupMaxPool()(x[0])


class Chain(nn.Module):
    """All three layers, over samples that stay."""

    def __init__(self, group: LieGroup, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.lift = LiftingConv2d(group, 3, 1, 2, 3, hidden=6, dtype=dtype)
        self.conv = GroupConv2d(group, 2, 2, 2, 3, padding=1, hidden=6, dtype=dtype)
        self.project = ProjectionConv2d(group, 2, 2, 2, 3, hidden=6, dtype=dtype)
        self.first, self.second = self.lift.sample(), self.conv.sample()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(self.lift(x, self.first), self.first, self.second)
        out: Tensor = self.project(maps, self.second)
        return out


@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_gradients_autocast_compilation(group: LieGroup) -> None:
    chain = Chain(group, DOUBLE)
    x = torch.randn(1, 1, 6, 6, dtype=DOUBLE, requires_grad=True)
    parameters = tuple(chain.parameters())
    assert gradcheck(lambda x, *_: chain(x), (x, *parameters), fast_mode=True)

    single = Chain(group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = single(x.detach().float())
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in single.parameters()
    )
    torch.testing.assert_close(out.float(), single(x.detach().float()), atol=0.05, rtol=0.1)


def test_compiles_and_counts_on_meta() -> None:
    chain = Chain(SL(2))
    x = torch.randn(2, 1, 6, 6)
    compiled: Callable[[Tensor], Tensor] = torch.compile(chain, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), chain(x))
    with torch.device("meta"):
        assert Chain(GLPlus(2))(torch.randn(2, 1, 6, 6)).is_meta


def test_state_is_kept(tmp_path: Path) -> None:
    chain, other = Chain(SL(2)), Chain(SL(2))
    other.first, other.second = chain.first, chain.second
    save_model(chain, tmp_path / "chain.safetensors")
    load_model(other, tmp_path / "chain.safetensors")
    x = torch.randn(1, 1, 6, 6)
    torch.testing.assert_close(other(x), chain(x))


def test_evaluation_keeps_kernels_only_for_the_same_samples_and_parameters() -> None:
    layer = GroupConv2d(SL(2), 3, 2, 2, 3).eval()
    first, second = layer.sample(), layer.sample()
    with torch.no_grad():
        weight = layer.weight(first, second)
        assert layer.weight(first, second) is weight
        assert layer.weight(first, layer.sample()) is not weight
        weight = layer.weight(first, second)
        layer.kernel.readout.bias.add_(1)
        changed = layer.weight(first, second)
        assert not torch.allclose(changed, weight)
        second.inverse.copy_(first.inverse)
        assert not torch.allclose(layer.weight(first, second), changed)
        layer.train()
        assert layer.weight(first, second) is not layer.weight(first, second)
    assert layer.eval().weight(first, second).requires_grad


def test_bad_input() -> None:
    group = SL(2)
    with pytest.raises(ValueError, match="kernel_size must be at least 2, got 1"):
        LiftingConv2d(group, 4, 1, 2, 1)
    with pytest.raises(ValueError, match="kernel_size must be at least 2, got 1"):
        ProjectionConv2d(group, 4, 1, 2, 1)
    for name, arguments in {
        "num_samples": (0, 1, 1, 3),
        "in_channels": (2, 0, 1, 3),
        "out_channels": (2, 1, 0, 3),
        "kernel_size": (2, 1, 1, 0),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            GroupConv2d(group, *arguments)
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        SirenKernel(2, 1, 1, hidden=0)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        LiftingConv2d(group, 4, 1, 2, 3, stride=0)
    with pytest.raises(ValueError, match="padding must be at least 0"):
        LiftingConv2d(group, 4, 1, 2, 3, padding=-1)
    with pytest.raises(ValueError, match="n must be 2 for samples, got 3"):
        LiftingConv2d(SL(3), 4, 1, 2, 3).sample()
    lift, conv = LiftingConv2d(group, 4, 1, 2, 3), GroupConv2d(group, 4, 2, 2, 3)
    samples = lift.sample()
    maps = lift(torch.randn(1, 1, 6, 6), samples)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, channels, height, width\)"):
        lift(torch.randn(1, 6, 6), samples)
    with pytest.raises(ValueError, match="dimension 1 of x must have size 1"):
        lift(torch.randn(1, 2, 6, 6), samples)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, channels, samples, height, width\)"):
        conv(maps[0], samples, samples)
    with pytest.raises(ValueError, match="dimension 2 of x must have size 3"):
        conv(maps, group.sample_pair(3), samples)
    with pytest.raises(ValueError, match=r"outputs must be elements \(samples, 2, 2\) with as many inverses"):
        conv(maps, samples, Samples(samples.g, samples.inverse[:2]))
    with pytest.raises(ValueError, match=r"samples must be elements \(samples, 2, 2\)"):
        lift(torch.randn(1, 1, 6, 6), Samples(torch.eye(3)[None], torch.eye(3)[None]))


@pytest.mark.parametrize(
    ("group", "diagonal", "message"),
    [
        (GLPlus(2), (1.0, -1.0), "g must have positive determinants, got -1"),
        (SL(2), (1.0, 2.0), r"g must have determinant 1 up to 0\.0001, got 2"),
        (SO(2), (2.0, 0.5), "g must be rotations"),
    ],
)
def test_samples_must_be_in_the_group(group: LieGroup, diagonal: tuple[float, float], message: str) -> None:
    g = torch.tensor(diagonal).diag()[None]
    wrong, right = Samples(g, torch.linalg.inv(g)), group.sample_pair(1)
    x = torch.randn(1, 1, 6, 6)
    lift, conv, project = (kind(group, 1, 1, 1, 3) for kind in (LiftingConv2d, GroupConv2d, ProjectionConv2d))
    with pytest.raises(ValueError, match=message):
        lift(x, wrong)
    with pytest.raises(ValueError, match=message):
        conv(x[:, :, None], wrong, right)
    with pytest.raises(ValueError, match=message):
        conv(x[:, :, None], right, wrong)
    with pytest.raises(ValueError, match=message):
        project(x[:, :, None], wrong)


@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_half_precision(group: LieGroup) -> None:
    lift, conv = (kind(group, 3, 1, 1, 3, dtype=torch.bfloat16) for kind in (LiftingConv2d, GroupConv2d))
    first, second = lift.sample(), conv.sample()
    out = conv(lift(torch.randn(1, 1, 6, 6, dtype=torch.bfloat16), first), first, second)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
