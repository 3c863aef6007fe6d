"""Local complexity against hyperplanes in closed form, and regions on a line against grids and known networks."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from netwright.analysis import _segment
from netwright.analysis import local_complexity as module
from netwright.analysis.local_complexity import (
    ComplexityTracker,
    breakpoints_on_segment,
    count_regions_on_segment,
    frame,
    local_complexity,
    log_spaced,
    random_probes,
)
from netwright.checks import InputError
from netwright.cost import count_params
from netwright.data import load
from netwright.models.vision.classic import MLP
from netwright.models.vision.preact_resnet import preact_resnet18
from netwright.training import Budget, fit


def _mlp(seed: int, inputs: int = 2, width: int = 8, depth: int = 3, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP(inputs, (width,) * (depth - 1), 2, act=act).double()


class Residual(nn.Module):
    """A residual sum before an activation that is called as a function, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act, self.head = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = functional.relu(x + self.second(x))
        return self.head(self.act(x.mean((2, 3)) - 0.2)) * functional.softplus(self.scale)


# local complexity


@given(seed=st.integers(0, 10_000), radius=st.floats(1e-3, 3.0))
def test_one_layer_counts_the_hyperplanes_nearer_than_the_vertices(seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(6, 20).double()
    points = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    directions = frame(points, 8, generator=torch.Generator().manual_seed(seed))
    reach = radius * (directions @ layer.weight.T).abs().amax(0)
    measured = local_complexity(
        nn.Sequential(layer, nn.ReLU()), points, radius, 8, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(measured.total, (layer(points).abs() < reach).sum(1))


@given(seed=st.integers(0, 10_000), radii=st.tuples(st.floats(1e-3, 2.0), st.floats(1e-3, 2.0)))
def test_the_count_of_one_layer_grows_with_the_radius(seed: int, radii: tuple[float, float]) -> None:
    model, points = _mlp(seed, depth=2), torch.randn(9, 2, dtype=torch.float64)
    small, large = (local_complexity(model, points, radius, 4).total for radius in sorted(radii))
    assert bool((small <= large).all())


def test_a_vanishing_neighbourhood_is_not_cut() -> None:
    model, points = _mlp(0, width=50), torch.randn(20, 2, dtype=torch.float64)
    assert local_complexity(model, points, 1e-9, 4).total.sum() == 0
    assert local_complexity(model, points, 1.0, 4).total.sum() > 0


def test_the_count_bounds_the_units_that_switch_on_a_grid_from_below() -> None:
    """Brute force over the square that the four vertices span."""
    model, points, radius = _mlp(1, width=30, depth=4), torch.randn(6, 2, dtype=torch.float64), 0.7
    first, second = frame(points, 4)
    u, v = torch.meshgrid(*[torch.linspace(-1, 1, 81, dtype=torch.float64)] * 2, indexing="ij")
    inside = (u.abs() + v.abs()) <= 1 + 1e-12
    grid = radius * (u[inside][:, None] * first + v[inside][:, None] * second)
    measured = local_complexity(model, points, radius, 4)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)][:-1]
    for index, point in enumerate(points):
        h, switching = point + grid, []
        for layer in linear:
            z = layer(h)
            switching.append(int(((z > 0).any(0) & (z <= 0).any(0)).sum()))
            h = z.relu()
        assert measured.counts[index, 0] == switching[0]  # a first layer's half-planes reach their extremes at vertices
        assert all(a <= b for a, b in zip(measured.counts[index].tolist(), switching, strict=True))


def test_what_enters_an_activation_counts_whoever_runs_it() -> None:
    model, points = Residual().eval(), torch.randn(3, 1, 5, 5)
    measured = local_complexity(model, points, 0.5, 10)
    assert measured.layers == ("act", "", "act (2)")  # the softplus of a parameter has no samples
    assert measured.units == (100, 100, 4)
    around = points[:, None] + 0.5 * torch.cat([frame(points, 10), -frame(points, 10)])
    entering = model.norm(model.first(around.flatten(0, 1)))
    sums = entering.relu() + model.second(entering.relu())
    for layer, z in enumerate((entering, sums, sums.relu().mean((2, 3)) - 0.2)):
        signs = (z > 0).unflatten(0, (3, 10)).flatten(2)
        assert torch.equal(measured.counts[:, layer], (signs != signs[:, :1]).any(1).sum(1))
    torch.testing.assert_close(measured.fractions[:, 0], measured.counts[:, 0].double() / 100)
    chosen = local_complexity(model, points, 0.5, 10, layers=["act (2)", "act"])
    assert chosen.layers == ("act (2)", "act")
    assert chosen.units == (4, 100)
    assert torch.equal(chosen.counts, measured.counts[:, [2, 0]])


def test_memory_format_does_not_matter() -> None:
    model, points = Residual(), torch.randn(3, 1, 5, 5)
    counts = local_complexity(model, points, 0.5, 10).counts
    assert torch.equal(local_complexity(model.to(memory_format=torch.channels_last), points, 0.5, 10).counts, counts)


def test_a_preactivation_network_is_seen_behind_its_normalisation() -> None:
    points = torch.randn(2, 3, 8, 8)
    plain, normed = (
        local_complexity(preact_resnet18(2, batch_norm=norm), points, 0.1, 6).layers for norm in (False, True)
    )
    assert len(plain) == len(normed) == 16
    assert plain[0] == "stages.0.0.norm_act"
    assert normed[0] == "stages.0.0.norm_act.1"


def test_points_do_not_depend_on_each_other_and_none_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = _mlp(0, width=50), torch.randn(11, 2, dtype=torch.float64)
    together = local_complexity(model, points, 0.3, 4).counts
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 4 * 8)  # four points at once, three in the last chunk
    assert torch.equal(local_complexity(model, points, 0.3, 4).counts, together)
    assert torch.equal(local_complexity(model, points[3:4], 0.3, 4).counts, together[3:4])


def test_the_centre_only_adds() -> None:
    model, points = _mlp(0, width=100, depth=4), torch.randn(30, 2, dtype=torch.float64)
    without, with_centre = (
        local_complexity(model, points, 1.0, 2, include_centre=centre).counts for centre in (False, True)
    )
    assert torch.equal(without[:, 0], with_centre[:, 0])  # a half-plane that has both ends has the middle
    assert bool((without <= with_centre).all())
    assert bool((without < with_centre).any())


@pytest.mark.parametrize("act", [nn.GELU, nn.Tanh, nn.LeakyReLU])
def test_other_activations_count_by_the_sign_of_their_input(act: type[nn.Module]) -> None:
    points = torch.randn(9, 2, dtype=torch.float64)
    relu, other = (local_complexity(_mlp(3, depth=2, act=kind), points, 0.5, 4).counts for kind in (nn.ReLU, act))
    assert torch.equal(relu, other)


def test_a_frame_is_orthonormal_and_drawn_by_the_generator() -> None:
    points = torch.randn(2, 3, 4, dtype=torch.float64)
    rows = frame(points, 24).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(12, dtype=torch.float64))
    one, other = (frame(points, 24, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.allclose(one, other)
    free = frame(points, 40, orthogonal=False).flatten(1)
    torch.testing.assert_close(free.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert free.shape == (20, 12)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model, points = Residual(), torch.randn(3, 1, 5, 5)
    model.norm.eval()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.second.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    tracker = ComplexityTracker(model, {"train": points, "random": random_probes(points)}, radius=0.5, vertices=10)
    tracker(0)
    local_complexity(model, points, 0.5, 10)
    with pytest.raises(InputError):  # the softplus of a parameter is no fold, batch statistics would be
        count_regions_on_segment(nn.Sequential(model, nn.GELU()), points[0], points[1])
    count_regions_on_segment(model, points[0], points[1])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(len(m._forward_hooks) + len(m._forward_pre_hooks) == 0 for m in model.modules())
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"first.weight"}
    assert torch.equal(model.first.weight.grad, torch.ones_like(model.first.weight))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["second.weight"]
    assert model.first.weight.dtype == torch.float32


def test_autocast_does_not_blur_the_signs() -> None:
    model, points = _mlp(0, inputs=6, width=200).float(), torch.randn(20, 6)
    plain = local_complexity(model, points, 0.01, 12).counts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local_complexity(model, points, 0.01, 12).counts, plain)


def test_bad_input() -> None:
    model, points = _mlp(0).float(), torch.randn(5, 2)
    with pytest.raises(InputError, match=r"vertices must be divisible by the two signs of a direction = 2, got 3"):
        local_complexity(model, points, 0.1, 3)
    with pytest.raises(InputError, match=r"at most twice the input's dimension \(2\) to be orthogonal, got 6"):
        local_complexity(model, points, 0.1, 6)
    with pytest.raises(InputError, match="vertices must be at least 2, got 0"):
        local_complexity(model, points, 0.1, 0)
    for radius in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="radius must be positive"):
            local_complexity(model, points, radius, 4)
    with pytest.raises(InputError, match=r"points must be of single or double precision, got torch.float16"):
        local_complexity(model, points.half(), 0.1, 4)
    with pytest.raises(InputError, match=r"weights must be of single or double precision.*got torch.bfloat16"):
        local_complexity(copy.deepcopy(model).bfloat16(), points, 0.1, 4)
    with pytest.raises(InputError, match=r"points must have shape \(points, \*input_shape\), got shape \(5,\)"):
        local_complexity(model, points[:, 0], 0.1, 4)
    with pytest.raises(InputError, match="number of points must be at least 1, got 0"):
        local_complexity(model, points[:0], 0.1, 4)
    with pytest.raises(InputError, match=r"must run activation functions such as ReLU.*got none"):
        local_complexity(nn.Linear(2, 2), points, 0.1, 4)
    with pytest.raises(InputError, match="unknown layer with an activation 'relu'; known are: 2, 4"):
        local_complexity(model, points, 0.1, 4, layers=["relu"])


# regions on a segment


def _tents(depth: int) -> nn.Sequential:
    """The tent map on [0, 1], iterated: 2 relu(x) − 4 relu(x − 1/2)."""
    model = nn.Sequential()
    for _ in range(depth):
        up, down = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            up.weight.fill_(1.0)
            up.bias.copy_(torch.tensor([0.0, -0.5]))
            down.weight.copy_(torch.tensor([[2.0, -4.0]]))
        model.extend([up, nn.ReLU(), down])
    return model


@pytest.mark.parametrize("depth", [1, 2, 5, 10])
def test_iterated_tent_maps_have_exponentially_many_regions(depth: int) -> None:
    """Telgarsky 2015, arXiv:1509.08101: 2^k pieces with 2k units, all of the same length."""
    places = breakpoints_on_segment(_tents(depth), torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(places, torch.arange(1, 2**depth, dtype=torch.float64) / 2**depth)
    assert count_regions_on_segment(_tents(depth), torch.zeros(1), torch.ones(1)) == 2**depth


@given(seed=st.integers(0, 10_000), depth=st.integers(2, 4), act=st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.PReLU]))
def test_patterns_on_a_fine_grid_change_at_the_breakpoints_and_nowhere_else(
    seed: int, depth: int, act: type[nn.Module]
) -> None:
    model = _mlp(seed, width=6, depth=depth, act=act)
    generator = torch.Generator().manual_seed(seed)
    a, b = 3 * torch.randn(2, 2, dtype=torch.float64, generator=generator)
    places = breakpoints_on_segment(model, a, b)
    assert torch.equal(places, places.sort().values)

    def pattern(at: Tensor) -> Tensor:
        h, signs = torch.lerp(a, b, at[:, None]), []
        for layer in model:
            if isinstance(layer, act):
                signs.append(h > 0)
            h = layer(h)
        return torch.cat(signs, 1)

    ends = torch.cat([places.new_zeros(1), places, places.new_ones(1)])
    inside = ends[:-1] + (ends[1:] - ends[:-1]) * torch.tensor([[0.01], [0.5], [0.99]], dtype=torch.float64)
    first, middle, last = (pattern(at) for at in inside)
    assert torch.equal(first, middle)
    assert torch.equal(middle, last)
    assert bool((middle[1:] != middle[:-1]).any(1).all())


@given(seed=st.integers(0, 10_000), share=st.floats(0.1, 0.9))
def test_regions_of_the_parts_of_a_segment_add_up(seed: int, share: float) -> None:
    model = _mlp(seed, inputs=5, width=12)
    a, b = 2 * torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    middle = torch.lerp(a, b, share)
    whole = count_regions_on_segment(model, a, b)
    parts = count_regions_on_segment(model, a, middle) + count_regions_on_segment(model, middle, b) - 1
    assert whole == parts == count_regions_on_segment(model, b, a)
    assert count_regions_on_segment(model, a, a) == 1


def test_regions_through_convolutions_norms_and_residual_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    model = preact_resnet18(2)
    model.stages[0][0].norm_act[0].running_var.fill_(0.5)
    a, b = torch.randn(2, 3, 4, 4)
    places = breakpoints_on_segment(model, a, b)
    assert len(places) > 50
    exact = copy.deepcopy(model).double().eval()
    ends = torch.cat([places.new_zeros(1), places, places.new_ones(1)])
    at = torch.cat([ends, (ends[1:] + ends[:-1]) / 2]).view(-1, 1, 1, 1)
    with torch.no_grad():
        outputs = exact(torch.lerp(a.double(), b.double(), at))
    values, middles = outputs[: len(ends)], outputs[len(ends) :]
    torch.testing.assert_close(middles, (values[1:] + values[:-1]) / 2)  # the network is linear between breakpoints
    monkeypatch.setattr(_segment, "_SEGMENT_POINTS", 40)
    torch.testing.assert_close(breakpoints_on_segment(model, a, b), places, rtol=0, atol=1e-13)


def test_networks_that_fold_elsewhere_are_refused() -> None:
    a, b = torch.randn(2, 1, 6, 6)
    head = nn.Sequential(nn.ReLU(), nn.Flatten())
    with pytest.raises(InputError, match="fold at 0, got gelu in layer '1'"):
        count_regions_on_segment(nn.Sequential(nn.Flatten(), nn.GELU()), a, b)
    with pytest.raises(InputError, match=r"cannot be counted through max pooling, which folds.*, got 0"):
        count_regions_on_segment(nn.Sequential(nn.MaxPool2d(2), *head), a, b)

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.max_pool2d(x, 3)

    bends = "must be linear between the folds of its activations, which max pooling, softmax, layer normalisation"
    with pytest.raises(InputError, match=f"{bends} .* what enters the activation in layer '1' bends elsewhere"):
        count_regions_on_segment(nn.Sequential(Functional(), *head), a, b)
    with pytest.raises(InputError, match=f"{bends} .* what enters the output bends elsewhere"):
        count_regions_on_segment(nn.Sequential(*head, nn.LayerNorm(36)), a, b)
    with pytest.raises(InputError, match="must run activation functions such as ReLU to have regions, got none"):
        count_regions_on_segment(nn.Flatten(), a, b)
    with pytest.raises(InputError, match=r"b must have the shape of a, \(1, 6, 6\), got shape \(6, 6\)"):
        count_regions_on_segment(head, a, b[0])
    with pytest.raises(InputError, match=r"a must be of a floating-point type, got torch.int64"):
        count_regions_on_segment(head, a.long(), b.long())


# the tracker


def test_the_tracker_measures_when_a_step_is_due() -> None:
    model, x = _mlp(0).float(), torch.randn(6, 2)
    tracker = ComplexityTracker(model, {"train": x, "random": random_probes(x)}, [0, 2, 3, 9], radius=0.5, vertices=4)
    for step in (0, 1, 2, 4, 5, 8, 12, 13):  # 3 is passed over, and so is 9
        tracker(step)
        with torch.no_grad():
            model[1].weight.add_(0.1)
    assert tracker.steps == [0, 2, 4, 12]
    assert len(tracker.means["random"]) == len(tracker.layers["random"]) == 4
    torch.testing.assert_close(tracker.layers["train"][2].sum().item(), tracker.means["train"][2])
    always = ComplexityTracker(model, {"train": x}, radius=0.5, vertices=4)
    always(3)
    always({"step": 3.0})
    measured = local_complexity(model, x, 0.5, 4)
    assert always.steps == [3, 3]
    assert always.means["train"] == [measured.total.double().mean().item()] * 2
    torch.testing.assert_close(always.layers["train"][0], measured.counts.double().mean(0))


def test_the_tracker_observes_fit_without_changing_it() -> None:
    data = load("digits", train=200)
    models = []
    for tracked in (False, True):
        torch.manual_seed(0)
        model = MLP(64, (32,), 10, norm=nn.BatchNorm1d)
        probes = {"train": data.train.inputs[:16], "test": data.test.inputs[:16]}
        tracker = ComplexityTracker(model, probes, log_spaced(16, 5), radius=0.1)
        fit(model, data, Budget(steps=16), evaluate_every=2, observer=tracker if tracked else None)
        models.append(model)
    assert tracker.steps == [2, 4, 8, 16]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


def test_the_tracker_refuses_bad_probes() -> None:
    model = _mlp(0).float()
    for probes in ({}, {"train": torch.zeros(3, 2), "test": torch.zeros(3, 4)}):
        with pytest.raises(InputError, match="probes must be one or more sets of points of the same shape"):
            ComplexityTracker(model, probes)
    with pytest.raises(InputError, match="radius must be positive, got 0"):
        ComplexityTracker(model, {"train": torch.zeros(3, 2)}, radius=0.0, vertices=4)


@given(last=st.integers(1, 100_000), number=st.integers(2, 60))
def test_log_spaced_steps(last: int, number: int) -> None:
    steps = log_spaced(last, number)
    assert steps[:2] == (0, 1)
    assert steps[-1] == last
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= number + 1


def test_log_spaced_and_random_probes_check_their_input() -> None:
    with pytest.raises(InputError, match="last step must be at least 1, got 0"):
        log_spaced(0)
    with pytest.raises(InputError, match="number of steps must be at least 2, got 1"):
        log_spaced(10, 1)
    x = torch.tensor([[0.0, -1.0], [3.0, 1.0]]).repeat(50, 1)
    drawn = random_probes(x)
    assert drawn.shape == x.shape
    assert -1 <= drawn.min() < -0.8
    assert 2.8 < drawn.max() <= 3
    assert torch.equal(drawn, random_probes(x))
    assert not torch.equal(drawn, random_probes(x, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("depth", "count"), [(2, 159_010), (4, 239_410)])
def test_published_counts_of_the_perceptrons(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert count_params(MLP(784, (200,) * (depth - 1), 10)) == count
