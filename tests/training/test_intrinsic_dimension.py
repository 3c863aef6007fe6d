"""Tests of ``netwright.training.intrinsic_dimension``: the search, its honesty, description length, shuffled data."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from netwright.data import load
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Diverged, Settings, evaluate, fit
from netwright.training.intrinsic_dimension import (
    IntrinsicDimension,
    Result,
    description_length,
    dims_grid,
    shuffle_labels,
    shuffle_pixels,
)
from netwright.training.subspace import SubspaceModel

SIZE = 110  # nn.Linear(10, 10)


def search(score: Callable[[int, float], float], rates: tuple[float, ...] = (0.1,), **options: Any) -> Result:
    """A search in which ``score(d, lr)`` stands for training; direct training has d = D."""

    def train(model: nn.Module, settings: Settings) -> None:
        model.lr = settings.lr  # type: ignore[assignment]

    def measure(model: nn.Module) -> float:
        return score(model.dim if isinstance(model, SubspaceModel) else SIZE, model.lr)  # type: ignore[arg-type]

    settings = tuple(Settings(lr=lr) for lr in rates)
    return IntrinsicDimension(lambda: nn.Linear(10, 10), train, measure, settings=settings, **options).run()


@given(true=st.integers(1, SIZE), whole_curve=st.booleans())
def test_smallest_dimension_that_reaches_the_target_is_found(true: int, whole_curve: bool) -> None:
    grid = (1, 10, 40, SIZE)
    result = search(lambda d, _: float(d >= true), dims=grid, refine=20, whole_curve=whole_curve)
    assert result.d_int == true
    assert set(grid) <= set(result.dims) or not whole_curve
    assert result.baseline == 1
    assert result.target == 0.9


def test_refinement_halves_the_gap_below_the_first_dimension_that_reached() -> None:
    result = search(lambda d, _: d / SIZE, dims=(10, 40, 100), refine=0, threshold=0.5)
    assert (result.dims, result.d_int) == ((10, 40, 100), 100)
    result = search(lambda d, _: d / SIZE, dims=(10, 40, 100), refine=2, threshold=0.5)
    assert (result.dims, result.d_int) == ((10, 40, 50, 63, 100), 63)
    assert result.scores == tuple(dim / SIZE for dim in result.dims)


def test_bisection_trains_less_than_the_whole_curve() -> None:
    grid = dims_grid(1, SIZE, per_decade=10)
    result = search(lambda d, _: float(d >= 30), dims=grid, refine=0, whole_curve=False)
    assert result.d_int == min(d for d in grid if d >= 30)
    assert len(result.dims) <= math.ceil(math.log2(len(grid) + 1))


def test_where_scores_do_not_rise_the_smallest_of_all_that_were_tried_counts() -> None:
    result = search(lambda d, _: float(d in (10, SIZE)), dims=(5, 10, 40), refine=0)
    assert result.d_int == 10


def test_no_dimension_reaches_the_target() -> None:
    result = search(lambda d, _: float(d == SIZE), dims=(5, 40))
    assert (result.d_int, result.dims) == (None, (5, 40))
    assert search(lambda d, _: float(d == SIZE), dims=(5, 40), whole_curve=False).d_int is None
    with pytest.raises(ValueError, match=r"no dimension reached the target 0\.9; try more than 40"):
        description_length(result)


def test_settings_are_chosen_for_every_dimension_and_for_the_baseline() -> None:
    def score(d: int, lr: float) -> float:
        return 1 - abs(math.log10(lr) + 2 - (d < 20)) / 2  # 0.1 is best below 20 dimensions, 0.01 above

    result = search(score, rates=(0.1, 0.01), dims=(10, 50), refine=0)
    assert [point.settings.lr for point in result.curve] == [0.1, 0.01]
    assert result.scores == (1, 1)
    assert result.baseline == 1
    assert result.d_int == 10


def test_a_baseline_or_a_target_saves_direct_training() -> None:
    seen = []

    def score(d: int, _: float) -> float:
        seen.append(d)
        return -100 / d

    result = search(score, dims=(10, 50, 100), refine=0, target=-2.0)
    assert (result.d_int, result.target, result.baseline) == (50, -2.0, None)
    result = search(lambda d, _: d / SIZE, dims=(10, 50, 100), refine=0, baseline=0.5)
    assert (result.d_int, result.target) == (50, 0.45)
    assert SIZE not in seen


def test_divergence_and_scores_that_are_no_numbers_lose() -> None:
    def train(model: nn.Module, settings: Settings) -> None:
        if settings.lr == 1 or (isinstance(model, SubspaceModel) and model.dim == 5):
            raise Diverged("the loss became nan")

    def measure(model: nn.Module) -> float:
        return math.nan if isinstance(model, SubspaceModel) and model.dim == 10 else 1.0

    settings = (Settings(lr=1), Settings(lr=0.1))
    result = IntrinsicDimension(
        lambda: nn.Linear(10, 10), train, measure, dims=(5, 10, 50), settings=settings, refine=0
    ).run()
    assert result.scores == (-math.inf, -math.inf, 1.0)
    assert result.d_int == 50
    assert result.curve[-1].settings.lr == 0.1


def test_all_networks_start_alike_and_torchs_generator_is_left_alone() -> None:
    starts: list[torch.Tensor] = []
    noise: list[torch.Tensor] = []

    def train(model: nn.Module, settings: Settings) -> None:
        weight = model.weights()["weight"] if isinstance(model, SubspaceModel) else model.weight
        starts.append(weight.detach().clone())
        noise.append(torch.rand(1))

    state = torch.get_rng_state()
    for seed in (0, 1):
        IntrinsicDimension(
            lambda: nn.Linear(10, 10), train, lambda model: 1.0, dims=(10, 50), settings=(Settings(),), seed=seed
        ).run()
    assert torch.equal(torch.get_rng_state(), state)
    half = len(starts) // 2
    assert all(torch.equal(a, starts[0]) for a in starts[:half])
    assert all(torch.equal(a, noise[0]) for a in noise[:half])
    assert not torch.equal(starts[half], starts[0])


def test_default_grid_goes_up_to_all_parameters() -> None:
    result = search(lambda d, _: float(d == SIZE), refine=0)
    assert (result.dims[0], result.dims[-1], result.d_int) == (10, SIZE, SIZE)
    tiny = IntrinsicDimension(lambda: nn.Linear(1, 2), lambda *_: None, lambda _: 1.0)
    assert tiny.dims == [4]


@given(low=st.integers(1, 100), ratio=st.integers(1, 1000), per_decade=st.integers(1, 12))
def test_grid_is_ascending_from_end_to_end(low: int, ratio: int, per_decade: int) -> None:
    grid = dims_grid(low, low * ratio, per_decade)
    assert (grid[0], grid[-1]) == (low, low * ratio)
    assert list(grid) == sorted(set(grid))


@pytest.mark.parametrize(("d_int", "bits"), [(750, 24_000), (290, 9_280)])
def test_published_description_lengths(d_int: int, bits: int) -> None:
    result = Result((d_int,), (1.0,), d_int, (), 1.0, 0.9, 199_210)
    assert description_length(result) == bits
    assert description_length(result, bits=16) == bits // 2


def test_digits_need_a_fraction_of_the_parameters() -> None:
    splits = load("digits")
    result = IntrinsicDimension(
        lambda: MLP(64, (100,), 10),
        lambda model, settings: fit(model, splits, Budget(epochs=2), settings=settings, evaluate_every=10**6),
        lambda model: evaluate(model, splits.val)["accuracy"],
        dims=(5, 50, 500),
        settings=(Settings(lr=0.03), Settings(lr=0.3)),
        projection="sparse",
        refine=0,
    ).run()
    assert result.d_int in (50, 500)
    assert result.scores[0] < 0.6 < result.scores[2]


def test_pixels_change_places_and_nothing_else() -> None:
    splits = load("digits")
    splits = splits.map(lambda inputs: torch.cat([inputs, 2 * inputs], 1))
    shuffled = shuffle_pixels(splits, torch.Generator().manual_seed(0))
    again = shuffle_pixels(splits, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.val.inputs, again.val.inputs)
    assert shuffled.input_shape == splits.input_shape
    for part in ("train", "val", "test"):
        old, new = getattr(splits, part), getattr(shuffled, part)
        assert torch.equal(old.targets, new.targets)
        assert not torch.equal(old.inputs, new.inputs)
        assert torch.equal(old.inputs.flatten(2).sort(-1).values, new.inputs.flatten(2).sort(-1).values)
        assert torch.equal(new.inputs[:, 1], 2 * new.inputs[:, 0])
    moved = (splits.train.inputs[:, 0].flatten(1).T[:, None] == shuffled.train.inputs[:, 0].flatten(1).T).all(-1)
    assert moved.any(1).all()  # one order for all pictures


def test_labels_are_dealt_out_anew() -> None:
    splits = load("digits")
    shuffled = shuffle_labels(splits, torch.Generator().manual_seed(0))
    for part in ("train", "val", "test"):
        old, new = getattr(splits, part), getattr(shuffled, part)
        assert torch.equal(old.inputs, new.inputs)
        assert torch.equal(old.targets.bincount(), new.targets.bincount())
        assert (old.targets == new.targets).float().mean() < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (10, 111)}, r"every one of dims must be in \[1, 110\], got 111"),
        ({"dims": (0, 10)}, r"every one of dims must be in \[1, 110\], got 0"),
        ({"dims": ()}, "number of dims must be at least 1, got 0"),
        ({"rates": ()}, "number of settings must be at least 1, got 0"),
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\], got 0"),
        ({"threshold": 1.1}, r"threshold must be in \(0, 1\], got 1.1"),
        ({"baseline": 0.9, "target": 0.5}, "give a baseline or a target, got both"),
        ({"baseline": -1.0}, r"a share of the baseline needs a positive score .* give a target instead, got -1.0"),
        ({"projection": "gaussian"}, "unknown projection 'gaussian'"),
        ({"refine": -1}, "refine must be at least 0, got -1"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(lambda d, _: d, **options)


def test_more_bad_input() -> None:
    with pytest.raises(ValueError, match="give a target instead, got -5"):
        search(lambda d, _: -5.0, dims=(10,))
    with pytest.raises(ValueError, match="bits must be at least 1, got 0"):
        description_length(Result((5,), (1.0,), 5, (), 1.0, 0.9, 10), bits=0)
    with pytest.raises(ValueError, match="high must be at least 10, got 5"):
        dims_grid(10, 5)
    with pytest.raises(ValueError, match=r"inputs must be pictures .* got inputs of shape \(4,\)"):
        shuffle_pixels(load("iris"), torch.Generator())
