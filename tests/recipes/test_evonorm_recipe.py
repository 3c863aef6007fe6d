"""Tests of the recipe ``evonorm``: alone and in chains, on the named models and on a network of the user's."""

import pytest
import torch
from torch import Tensor, nn

from netwright.data import load
from netwright.layers.evonorm import EvoNormB0, EvoNormS0
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, evaluate, fit


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


def user_model() -> nn.Module:
    return nn.Sequential(
        Block(1, 12), nn.MaxPool2d(2), Block(12, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )


@pytest.mark.parametrize(("source", "acts", "relus"), [("cnn", 3, 0), ("resnet-tiny", 4, 3), ("user", 2, 2)])
def test_the_model_trains_and_no_activation_is_left_behind(source: str, acts: int, relus: int) -> None:
    splits = load("digits")
    plain = user_model() if source == "user" else build_model(source, splits)
    model = parse_chain("evonorm").build(plain, splits)
    layers = [module for module in model.modules() if isinstance(module, EvoNormS0)]
    assert sum(layer.apply_act for layer in layers) == acts
    assert {layer.num_features % layer.groups for layer in layers} == {0}
    called = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *_: called.append(1))
    model(splits.val.inputs[:2])
    assert len(called) == relus
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    fit(model, splits, Budget(steps=40), settings=Settings(lr=0.01))
    assert evaluate(model, splits.val)["accuracy"] > 0.5


def test_options() -> None:
    splits = load("digits")
    plain = build_model("cnn", splits)
    batch = parse_chain("evonorm[kind=B0]").build(plain, splits)
    assert sum(isinstance(module, EvoNormB0) for module in batch.modules()) == 3
    groups = parse_chain("evonorm[groups=7]").build(plain, splits)
    assert [module.groups for module in groups.modules() if isinstance(module, EvoNormS0)] == [4, 4, 4]
    with pytest.raises(ValueError, match="unknown kind of EvoNorm 'S7'"):
        parse_chain("evonorm[kind=S7]").build(plain, splits)


@pytest.mark.parametrize("chain", ["evonorm+phm", "phm+evonorm"])
@pytest.mark.parametrize("source", ["cnn", "resnet-tiny"])
def test_chains_with_other_layers(chain: str, source: str) -> None:
    splits = load("digits")
    model = parse_chain(chain).build(build_model(source, splits), splits)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(splits.val.inputs[:2]).shape == (2, 10)
    assert torch.isfinite(model(splits.val.inputs[:2])).all()


def test_a_model_without_normalisation_is_refused() -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match="must have a 2-D normalisation"):
        parse_chain("evonorm").build(build_model("mlp", splits), splits)
