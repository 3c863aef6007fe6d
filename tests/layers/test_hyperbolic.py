"""Tests of ``netwright.layers.hyperbolic``: the operations of the Poincaré ball."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from netwright.cost import saved_bytes
from netwright.layers._hyperbolic import arsinh, boundary_margin
from netwright.layers.hyperbolic import PoincareBall

DOUBLE = torch.float64
CURVATURES = st.floats(0.05, 4.0)


def points(ball: PoincareBall, *shape: int, spread: float = 0.5, dtype: torch.dtype = DOUBLE) -> Tensor:
    return ball.expmap0(spread / ball._number() ** 0.5 * torch.randn(*shape, dtype=dtype)).detach()


def lambda_x(x: Tensor, c: float) -> Tensor:
    return 2 / (1 - c * x.square().sum(-1, keepdim=True))


@given(c=CURVATURES)
def test_mobius_addition_is_a_gyrogroup(c: float) -> None:
    ball = PoincareBall(c)
    x, y, z = (points(ball, 5, 3) for _ in range(3))
    zero = torch.zeros_like(x)
    torch.testing.assert_close(ball.mobius_add(x, zero), x)
    torch.testing.assert_close(ball.mobius_add(zero, x), x)
    torch.testing.assert_close(ball.mobius_add(-x, ball.mobius_add(x, y)), y, rtol=1e-6, atol=1e-6)
    turned = ball.mobius_add(ball.mobius_add(x, y), ball.gyration(x, y, z))
    torch.testing.assert_close(ball.mobius_add(x, ball.mobius_add(y, z)), turned, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ball.gyration(x, y, z).norm(dim=-1), z.norm(dim=-1))


@given(c=CURVATURES)
def test_maps_undo_each_other_and_measure_the_distance(c: float) -> None:
    ball = PoincareBall(c)
    x, y = points(ball, 5, 3), points(ball, 5, 3)
    v = ball.logmap(x, y)
    torch.testing.assert_close(ball.expmap(x, v), y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ball.expmap0(ball.logmap0(x)), x)
    distance = ball.dist(x, y)
    torch.testing.assert_close((lambda_x(x, c) * v.norm(dim=-1, keepdim=True)).squeeze(-1), distance)
    apart = ball.mobius_add(-x, y).norm(dim=-1)
    torch.testing.assert_close(2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * apart), distance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ball.dist(x, y, squared=True), distance.square())
    torch.testing.assert_close(ball.dist(y, x), distance)


@given(c=CURVATURES)
def test_transport_keeps_lengths_angles_and_the_velocity_of_the_geodesic(c: float) -> None:
    ball = PoincareBall(c)
    x, y = points(ball, 5, 3), points(ball, 5, 3)
    v, w = torch.randn(2, 5, 3, dtype=DOUBLE)
    moved_v, moved_w = ball.transp(x, y, v), ball.transp(x, y, w)
    before = lambda_x(x, c).squeeze(-1) ** 2 * (v * w).sum(-1)
    torch.testing.assert_close(lambda_x(y, c).squeeze(-1) ** 2 * (moved_v * moved_w).sum(-1), before)
    torch.testing.assert_close(ball.transp(x, y, ball.logmap(x, y)), -ball.logmap(y, x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ball.transp(y, x, moved_v), v)


def test_flat_space_is_the_limit() -> None:
    ball = PoincareBall(1e-9)
    x, y, v = torch.randn(3, 5, 3, dtype=DOUBLE)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ball.mobius_add(x, y), x + y, **close)
    torch.testing.assert_close(ball.expmap0(v), v, **close)
    torch.testing.assert_close(ball.expmap(x, v), x + v, **close)
    torch.testing.assert_close(ball.logmap(x, y), y - x, **close)
    torch.testing.assert_close(ball.transp(x, y, v), v, **close)
    torch.testing.assert_close(ball.dist(x, y), 2 * (x - y).norm(dim=-1), **close)  # the metric is 4 dx² at the origin
    torch.testing.assert_close(ball.midpoint(x), x.mean(0), **close)


def test_midpoints_and_frechet_means() -> None:
    ball = PoincareBall(0.7)
    x, y = points(ball, 2, 3)
    middle = ball.expmap(x, ball.logmap(x, y) / 2)
    pair = torch.stack([x, y])
    torch.testing.assert_close(ball.midpoint(pair), middle)
    torch.testing.assert_close(ball.frechet_mean(pair), middle)
    cloud = points(ball, 20, 3)
    third = torch.tensor([1.0, 2.0], dtype=DOUBLE).repeat(10)
    doubled = torch.cat([cloud, cloud[1::2]])
    torch.testing.assert_close(ball.midpoint(cloud, third[:, None]), ball.midpoint(doubled))
    mean = ball.frechet_mean(cloud)
    assert ball.logmap(mean, cloud).sum(0).norm() < 1e-9

    def spread(m: Tensor) -> float:
        return ball.dist(cloud, m, squared=True).sum().item()

    assert spread(mean) < spread(ball.midpoint(cloud))
    # an isometry moves both along
    for method in (ball.midpoint, ball.frechet_mean):
        torch.testing.assert_close(method(ball.mobius_add(x, cloud)), ball.mobius_add(x, method(cloud)))


def test_means_are_projected() -> None:
    ball = PoincareBall(4.0)
    near = torch.tensor([[0.49999, 0.0], [0.49999, 0.0]])
    for mean in (ball.midpoint(near), ball.frechet_mean(near)):
        torch.testing.assert_close(mean, ball.project(near[0]))


def test_means_over_several_dimensions() -> None:
    ball = PoincareBall(0.5)
    maps = points(ball, 4, 5, 6, 3).movedim(-1, 1)  # (batch, channels, height, width)
    flat = maps.movedim(1, -1).flatten(0, 2)
    for method in (ball.midpoint, ball.frechet_mean):
        torch.testing.assert_close(method(maps, dim=1, over=(0, 2, 3)), method(flat))
        kept = method(maps, dim=1, over=(0, 3), keepdim=True)
        assert kept.shape == (1, 3, 5, 1)
        torch.testing.assert_close(kept[0, :, 2, 0], method(maps[:, :, 2].movedim(1, -1).flatten(0, 1)))


class _Method(nn.Module):
    """A method of a ball whose c is learned."""

    def __init__(self, c: float, method: str, options: dict[str, object]) -> None:
        super().__init__()
        self.ball = PoincareBall(c, learnable=True).double()
        self.method = method
        self.options = options

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = getattr(self.ball, self.method)(*inputs, **self.options)
        return output


METHODS: list[tuple[str, str, dict[str, object]]] = [
    ("mobius_add", "xy", {}),
    ("project", "x", {}),
    ("project", "b", {}),
    ("expmap0", "v", {}),
    ("expmap0", "b", {}),
    ("logmap0", "x", {}),
    ("expmap", "xv", {}),
    ("logmap", "xy", {}),
    ("gyration", "xyv", {}),
    ("transp", "xyv", {}),
    ("dist", "xy", {}),
    ("dist", "xy", {"squared": True, "keepdim": True}),
    ("midpoint", "x", {}),
    ("frechet_mean", "x", {}),
]


def arguments(ball: PoincareBall, kinds: str) -> list[Tensor]:
    made = {
        "x": points(ball, 2, 3),
        "y": points(ball, 3),  # broadcasts
        "v": torch.randn(2, 3, dtype=DOUBLE),
        "b": 20 * torch.randn(2, 3, dtype=DOUBLE),  # beyond the boundary
    }
    return [made[kind].requires_grad_() for kind in kinds]


@pytest.mark.parametrize(("method", "kinds", "options"), METHODS)
def test_hand_written_backwards(method: str, kinds: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    module = _Method(0.6, method, options)
    inputs = arguments(module.ball, kinds)
    raw = module.ball.raw_c
    assert raw is not None

    def with_raw(raw: Tensor, *inputs: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, {"ball.raw_c": raw}, inputs)
        return output

    assert gradcheck(with_raw, (raw, *inputs))
    if method != "frechet_mean":  # its derivative is that of an equation, once
        assert gradgradcheck(with_raw, (raw, *inputs))
    plain = PoincareBall(0.6, backward="autograd")
    torch.testing.assert_close(getattr(plain, method)(*inputs, **options), module(*inputs))


@pytest.mark.parametrize("method", ["mobius_add", "project", "expmap0", "logmap0", "expmap", "logmap", "transp"])
def test_only_the_arguments_are_kept_for_backward(method: str) -> None:
    kinds = next(kinds for name, kinds, _ in METHODS if name == method)
    ball = PoincareBall(0.6)
    inputs = [torch.randn(50, 3).mul(0.3).requires_grad_() for _ in kinds]
    written = saved_bytes(getattr(ball, method), *inputs)
    autograd = saved_bytes(getattr(PoincareBall(0.6, backward="autograd"), method), *inputs)
    assert written == 0
    assert autograd > 0


def test_half_precision_is_computed_in_float32() -> None:
    ball = PoincareBall(1.0)
    v = torch.randn(10, 4, dtype=torch.bfloat16) * 50
    x = ball.expmap0(v)
    assert x.dtype == torch.float32
    assert (x.norm(dim=-1) < 1).all()


@given(size=st.floats(1e-12, 1e12), c=CURVATURES)
def test_float32_is_safe_at_the_boundary(size: float, c: float) -> None:
    """Vectors of any size give points inside, finite values and finite gradients."""
    ball = PoincareBall(c)
    v = (torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]) * size).requires_grad_()
    x = ball.expmap0(v)
    assert (x.norm(dim=-1) * math.sqrt(c) <= 1 - boundary_margin(torch.float32) + 1e-6).all()
    results = [
        ball.logmap0(x),
        ball.mobius_add(x, x.flip(0)),
        ball.logmap(x, x.flip(0)),
        ball.expmap(x, v),
        ball.transp(x, -x, v.clamp(-1, 1)),
        ball.dist(x, -x),
        ball.midpoint(x),
    ]
    assert all(result.isfinite().all() for result in results)
    torch.stack([result.sum() for result in results]).sum().backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    assert v.grad.isfinite().all()


def test_distance_keeps_its_digits_in_float32() -> None:
    ball = PoincareBall(1.0)
    x = points(ball, 100, 3, spread=1.5)
    y = x + 1e-6 * torch.randn(100, 3, dtype=DOUBLE)
    exact = ball.dist(x.float().double(), y.float().double())
    torch.testing.assert_close(ball.dist(x.float(), y.float()).double(), exact, rtol=1e-2, atol=0)
    assert torch.equal(ball.dist(x, x), torch.full((100,), ball.dist(x, x)[0].item(), dtype=DOUBLE))
    assert ball.dist(x, x).max() < 1e-14


def test_arsinh() -> None:
    x = torch.cat([torch.logspace(-20, 15, 50), -torch.logspace(-20, 15, 50), torch.zeros(1)])
    torch.testing.assert_close(arsinh(x), x.asinh(), rtol=1e-6, atol=0)
    assert gradgradcheck(arsinh, torch.tensor([-3.0, 0.0, 0.2], dtype=DOUBLE, requires_grad=True))


def test_learned_curvature_starts_where_it_was_asked_to() -> None:
    ball = PoincareBall(0.1, learnable=True)
    assert ball._number() == pytest.approx(0.1)
    assert sum(p.numel() for p in ball.parameters()) == 1
    assert not list(PoincareBall(0.1).parameters())
    again = PoincareBall(2.0, learnable=True)
    again.load_state_dict(ball.state_dict())
    assert again._number() == pytest.approx(0.1)


# torch's tracer makes an instance of each function class, of which torch itself warns
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_traces_without_breaks() -> None:
    ball = PoincareBall(0.5)

    def all_of_it(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return ball.transp(x, y, v) + ball.expmap0(v)

    x, y, v = points(ball, 2, 3), points(ball, 2, 3), torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    compiled: Callable[..., Tensor] = torch.compile(all_of_it, fullgraph=True, backend="eager")
    expected = all_of_it(x, y, v)
    torch.testing.assert_close(compiled(x, y, v), expected)
    (gradient,) = torch.autograd.grad(compiled(x, y, v).sum(), v)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), v)[0])


def test_bad_input() -> None:
    for c in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="c must be positive"):
            PoincareBall(c)
    with pytest.raises(ValueError, match="unknown backward 'hand'"):
        PoincareBall(backward="hand")  # type: ignore[arg-type]
    ball = PoincareBall(4.0, check=True)
    inside, outside = torch.tensor([0.3, 0.3]), torch.tensor([0.4, 0.4])
    ball.mobius_add(inside, inside)
    for call in (
        lambda: ball.mobius_add(inside, outside),
        lambda: ball.logmap0(outside),
        lambda: ball.dist(outside, inside),
        lambda: ball.midpoint(outside[None]),
        lambda: ball.logmap0(torch.tensor([math.nan, 0.0])),
    ):
        with pytest.raises(ValueError, match=r"points must be inside of the ball, √c·\|x\| < 1, got"):
            call()
    with pytest.raises(ValueError, match="vectors must be of a floating-point type"):
        ball.expmap0(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="over must name dimensions other than that of the coordinates"):
        ball.midpoint(torch.zeros(3, 2), over=-1)
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        ball.frechet_mean(torch.zeros(3, 2), max_steps=0)
