"""Tests of ``netwright.compression.densities``."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.checks import InputError
from netwright.compression.densities import (
    ALLOCATORS,
    erdos_renyi,
    erk,
    erk_plus,
    exact_counts,
    from_scores,
    uniform,
    uniform_plus,
)
from netwright.compression.masks import shapes_of
from netwright.models.vision.classic import lenet_300_100, vgg_bn
from netwright.models.vision.resnet import resnet_cifar

with torch.device("meta"):
    RESNET = shapes_of(resnet_cifar(20, 16, shortcut="B"))
    LENET = shapes_of(lenet_300_100())
    VGG = shapes_of(vgg_bn(16))


def global_density(shapes: dict[str, tuple[int, ...]], densities: dict[str, float]) -> float:
    return sum(densities[n] * math.prod(s) for n, s in shapes.items()) / sum(map(math.prod, shapes.values()))


def official_erk(shapes: dict[str, tuple[int, ...]], density: float, dims: int | None) -> dict[str, float]:
    """The loop of the official repository, written anew: the densest layers are frozen until the rest fits."""
    dense: set[str] = set()
    while True:
        budget = weight = 0.0
        raw = {}
        for name, shape in shapes.items():
            if name in dense:
                budget -= math.prod(shape) * (1 - density)
            else:
                budget += math.prod(shape) * density
                raw[name] = sum(shape[:dims]) / math.prod(shape[:dims])
                weight += raw[name] * math.prod(shape)
        largest = max(raw.values())
        if largest * budget / weight <= 1:
            return {name: 1.0 if name in dense else budget / weight * raw[name] for name in shapes}
        dense |= {name for name, value in raw.items() if value == largest}


def test_published_erk_densities_of_resnet_20() -> None:
    densities = erk(RESNET, 0.1)
    by_shape = {RESNET[name]: value for name, value in densities.items()}
    assert by_shape[16, 3, 3, 3] == pytest.approx(0.983, abs=5e-4)
    assert by_shape[16, 16, 3, 3] == pytest.approx(0.2802, abs=5e-5)
    assert by_shape[64, 64, 3, 3] == pytest.approx(0.0617, abs=5e-5)
    assert by_shape[10, 64] == by_shape[32, 16, 1, 1] == 1
    assert by_shape[16, 16, 3, 3] / (38 / 2304) == pytest.approx(16.986, abs=5e-4)  # ε


def test_published_erdos_renyi_densities_of_lenet() -> None:
    assert [round(value, 4) for value in erdos_renyi(LENET, 0.1).values()] == [0.0796, 0.2302, 1.0]


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shapes", [RESNET, LENET, VGG])
def test_densities_are_those_of_the_official_solver(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    assert erk(shapes, density) == pytest.approx(official_erk(shapes, density, None), abs=1e-9)
    assert erdos_renyi(shapes, density) == pytest.approx(official_erk(shapes, density, 2), abs=1e-9)


@given(
    shapes=st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=8),
    density=st.floats(0.001, 1.0),
    power=st.floats(0.0, 2.0),
)
def test_budget_is_met_and_no_layer_overflows(shapes: list[list[int]], density: float, power: float) -> None:
    named = {str(index): tuple(shape) for index, shape in enumerate(shapes)}
    for densities in (uniform(named, density), erdos_renyi(named, density, power), erk(named, density, power)):
        assert list(densities) == list(named)
        assert all(0 < value <= 1 for value in densities.values())
        assert global_density(named, densities) == pytest.approx(density)


@given(density=st.floats(0.05, 1.0))
def test_plus_variants_meet_the_budget(density: float) -> None:
    plus, kernel = uniform_plus(RESNET, density), erk_plus(RESNET, density)
    assert global_density(RESNET, plus) == pytest.approx(density)
    assert global_density(RESNET, kernel) == pytest.approx(density)
    assert plus["stem.0.weight"] == kernel["classifier.weight"] == 1
    assert plus["classifier.weight"] >= 0.2 - 1e-12
    rest = [value for name, value in plus.items() if name not in ("stem.0.weight", "classifier.weight")]
    assert max(rest) == min(rest)


def test_erk_plus_gives_the_classifier_what_is_asked() -> None:
    densities = erk_plus(VGG, 0.1, fc_density=0.5)
    assert list(densities.values())[-1] == 0.5
    assert global_density(VGG, densities) == pytest.approx(0.1)
    assert erk_plus({"fc": (10, 10)}, 0.3) == {"fc": 0.3}


def test_plus_without_convolution_only_cares_for_the_classifier() -> None:
    densities = uniform_plus(LENET, 0.05)
    assert list(densities.values())[-1] == 0.2
    assert len(set(densities.values())) == 2
    assert set(uniform_plus(LENET, 0.5).values()) == {0.5}


@given(density=st.floats(0.01, 1.0))
def test_scores_are_cut_globally(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(30, 10, generator=generator), "b": 2 * torch.rand(20, 10, generator=generator)}
    densities = from_scores(scores, density)
    kept = max(1, round(density * 500))
    assert densities["a"] * 300 + densities["b"] * 200 == pytest.approx(kept)
    threshold = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values[kept - 1]
    assert densities["a"] == pytest.approx((scores["a"] >= threshold).float().mean().item())


def test_counts_by_largest_remainder() -> None:
    assert exact_counts({"a": (10, 10), "b": (10, 3)}, {"a": 0.253, "b": 0.253}) == {"a": 25, "b": 8}
    assert sum(exact_counts(RESNET, erk(RESNET, 0.1)).values()) == round(0.1 * 270_896)


def test_two_hundred_layers_are_solved_at_once() -> None:
    shapes = {str(index): (16 + index, 16, 3, 3) for index in range(200)}
    started = time.perf_counter()
    erk(shapes, 0.1)
    assert time.perf_counter() - started < 0.05


@pytest.mark.parametrize("name", ALLOCATORS)
def test_bad_densities_are_refused(name: str) -> None:
    for density in (0.0, -0.1, 1.1):
        with pytest.raises(InputError, match=rf"density must be in \(0.*, 1\], got {density}"):
            ALLOCATORS[name](RESNET, density)
    with pytest.raises(InputError, match="at least one layer"):
        ALLOCATORS[name]({}, 0.5)


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(InputError, match=r"density 0.001 cannot be met: it allows 266 .* 'fc' at 1 \(1000 weights\)"):
        erk_plus({"conv": (294, 100, 3, 3), "fc": (10, 100)}, 0.001)
    with pytest.raises(InputError, match=r"density 0.01 cannot be met.*'conv' at 1 \(432 weights\)"):
        uniform_plus({"conv": (16, 3, 3, 3), "fc": (10, 16)}, 0.01)
    with pytest.raises(InputError, match=r"fc_density must be in"):
        erk_plus(RESNET, 0.1, fc_density=0)
    with pytest.raises(InputError, match=r"ERK\+ needs a classifier"):
        erk_plus({"conv": (16, 3, 3, 3)}, 0.5)
    with pytest.raises(InputError, match="scores must be finite"):
        from_scores({"a": torch.tensor([[1.0, math.nan]])}, 0.5)
