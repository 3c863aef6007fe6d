"""Tests of ``netwright.models.vision.qresnet``: sizes, and that it starts as its conventional twin."""

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.layers.quadratic import quadratic_layers, quadraticize
from netwright.models.vision.qresnet import qresnet
from netwright.models.vision.resnet import resnet_cifar


@pytest.mark.parametrize(
    ("depth", "form", "parameters"), [(20, "full", 806_266), (20, "compact", 538_330), (110, "full", 5_177_626)]
)
def test_published_counts(depth: int, form: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_params(qresnet(depth, form)) == parameters  # type: ignore[arg-type]
        assert count_params(resnet_cifar(20)) == 269_722


def test_stem_and_classifier_are_conventional() -> None:
    model = qresnet(8)
    assert len(quadratic_layers(model)) == 6
    assert isinstance(model.stem[0], nn.Conv2d)
    assert isinstance(model.classifier, nn.Linear)


def test_a_converted_residual_network_computes_the_same() -> None:
    plain = resnet_cifar(8)
    quadratic = quadraticize(plain, where=lambda name, _: name.startswith("stages"))
    assert len(quadratic_layers(quadratic)) == 6
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(quadratic(x), plain(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="depth must be 6n"):
        qresnet(9)
    with pytest.raises(ValueError, match="unknown form 'fully'; did you mean 'full'"):
        qresnet(8, "fully")  # type: ignore[arg-type]
