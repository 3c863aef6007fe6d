"""Tests of the recipe ``mix-shift``: alone and in chains, on the named models and on a network of the user's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.cost import count_params
from netwright.data import load
from netwright.layers.hypercomplex import PHConv2d
from netwright.layers.mix_shift import MixShift
from netwright.models.baselines import build_model
from netwright.models.vision.resnet import resnet_cifar
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, evaluate, fit


def layers(model: nn.Module) -> list[MixShift]:
    return [module for module in model.modules() if isinstance(module, MixShift)]


class UserNet(nn.Module):
    """Depth-wise and strided convolutions, and a ``view`` that needs maps with channels first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 10, 3, padding=1)
        self.depthwise = nn.Conv2d(10, 10, 5, stride=2, padding=2, groups=10)
        self.dense = nn.Conv2d(10, 8, 3, padding="same")
        self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.stem(x))))
        x = self.last(torch.relu(self.dense(x)))
        return self.head(x.view(len(x), -1))


def test_shifts_are_as_long_as_the_maps_allow() -> None:
    splits = load("digits")
    plain = build_model("cnn", splits)
    model = parse_chain("mix-shift").build(plain, splits)
    assert [layer.shifts for layer in layers(model)] == [(-2, -1, 0, 1, 2), (-1, -1, 0, 1, 1)]  # maps of 4×4 and 2×2
    assert [type(layer) for layer in plain[:1]] == [type(layer) for layer in model[:1]] == [nn.Conv2d]
    assert count_params(model) < 0.5 * count_params(plain)
    with pytest.raises(ValueError, match=r"shifts up to 2 pixels need more than 2 in the map of layer '8', got 2×2"):
        parse_chain("mix-shift[fit=False]").build(plain, splits)
    short = parse_chain("mix-shift[fit=False,shift=1,stage=4]").build(plain, splits)
    assert {(layer.shifts, layer.kernels) for layer in layers(short)} == {((-1, -1, 0, 1, 1), (1, 7, 7, 7, 7))}
    wide = parse_chain("mix-shift[shift=3]").build(plain, splits)
    assert layers(wide)[0].shifts == (-3, -2, 0, 2, 3)
    none = parse_chain("mix-shift[shift=0]").build(plain, splits)
    assert layers(none)[0].shifts == (0,) * 5


def test_a_users_network_trains() -> None:
    splits = load("digits")
    model = parse_chain("mix-shift").build(UserNet(), splits)
    assert isinstance(model.stem, nn.Conv2d)
    assert [layer.dim for layer in layers(model)] == [10, 10, 8]
    assert isinstance(model.last, MixShift)
    fit(model, splits, Budget(steps=50), settings=Settings(lr=0.01))
    assert evaluate(model, splits.val)["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("chain", "kind"), [("mix-shift+phm", PHConv2d), ("mix-shift+evonorm", MixShift), ("evonorm+mix-shift", MixShift)]
)
def test_chains_with_other_layers(chain: str, kind: type[nn.Module]) -> None:
    splits = load("digits")
    plain = resnet_cifar(8, 16, shortcut="B", in_channels=1)
    model = parse_chain(chain).build(plain, splits)
    assert any(isinstance(module, kind) for module in model.modules())
    assert len(layers(model)) == 6
    history = fit(model, splits, Budget(steps=1))
    assert history.steps == 1
    assert model(splits.val.inputs[:2]).shape == (2, 10)


def test_runs_through_compare(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "cnn", ["mix-shift+lottery-ticket"], seeds=(0,), budget="60steps", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    baseline, arm = result.arms
    assert arm.costs["parameters"] < 0.5 * baseline.costs["parameters"]
    assert arm.costs["nonzero"] < arm.costs["parameters"]


@pytest.mark.parametrize(
    ("chain", "model", "message"),
    [
        ("mix-shift", "mlp", "found no undilated convolution of 3×3 or more"),
        ("mix-shift[shift=-1]", "cnn", "option 'shift' of recipe 'mix-shift' must be at least 0, got -1"),
        ("mix-shift[stage=5]", "cnn", r"option 'stage' of recipe 'mix-shift' must be in \[1, 4\], got 5"),
    ],
)
def test_what_is_refused(chain: str, model: str, message: str) -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match=message):
        parse_chain(chain).build(build_model(model, splits), splits)
