"""Tests of ``netwright.layers._cache``; what a layer does with it is tested with ``layers.hypercomplex``."""

import copy

import torch
from torch import Tensor, nn

from netwright.layers._cache import Cache


class Counted:
    """Doubles a weight and counts how often."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return 2 * self.weight


def test_keeps_until_a_source_or_the_key_changes() -> None:
    cache, build = Cache(), Counted(torch.ones(3))
    for key, expected in ((1, 1), (1, 1), (2, 2), (2, 2)):
        cache.get(build, build.weight, key=key)
        assert build.calls == expected
    build.weight.add_(1)
    assert torch.equal(cache.get(build, build.weight, key=2), torch.full((3,), 4.0))
    cache.clear()
    cache.get(build, build.weight, key=2)
    assert build.calls == 4


def test_builds_anew_where_a_gradient_is_wanted() -> None:
    cache, build = Cache(), Counted(nn.Parameter(torch.ones(3)))
    assert cache.get(build, build.weight).requires_grad
    with torch.no_grad():
        assert not cache.get(build, build.weight).requires_grad
    assert cache.get(build, build.weight).requires_grad


def test_does_not_keep_what_was_made_of_tensors_without_a_count_of_changes() -> None:
    with torch.inference_mode():
        cache, build = Cache(), Counted(torch.ones(3))
        cache.get(build, build.weight)
        build.weight.add_(1)
        assert torch.equal(cache.get(build, build.weight), torch.full((3,), 4.0))


def test_a_copy_starts_empty() -> None:
    cache, build = Cache(), Counted(torch.ones(3))
    kept = cache.get(build, build.weight)
    assert cache.get(build, build.weight) is kept
    assert copy.deepcopy(cache).get(build, build.weight) is not kept
