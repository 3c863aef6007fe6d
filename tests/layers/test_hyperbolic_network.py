"""Tests of ``netwright.layers.hyperbolic_network``."""

import pytest
import torch
from torch import nn

from netwright.layers.hyperbolic import PoincareBall
from netwright.layers.hyperbolic_layers import PoincareConv2d, PoincareLinear
from netwright.layers.hyperbolic_network import to_poincare
from netwright.layers.hyperbolic_norm import PoincareBatchNorm, PoincareBatchNorm2d
from netwright.models.vision.resnet import resnet_cifar
from netwright.surgery import swapped


def test_all_layers_share_one_ball_and_the_model_stays() -> None:
    model = resnet_cifar(8, 4, shortcut="B")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = to_poincare(model, learnable=True)
    torch.testing.assert_close(model.state_dict(), before)
    assert not [m for m in new.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    assert len({id(m) for m in new.modules() if isinstance(m, PoincareBall)}) == 1
    new(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())


def test_vectors_and_what_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Flatten(2),
        nn.BatchNorm1d(6),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, 5),
        nn.BatchNorm1d(5),
    )
    new = to_poincare(model, init="normal").double()
    assert swapped(new) == ("2", "3", "5", "8", "9")
    kinds = [PoincareConv2d, PoincareBatchNorm2d, PoincareBatchNorm, PoincareLinear, PoincareBatchNorm]
    assert [type(new.get_submodule(name)) for name in swapped(new)] == kinds
    assert new(torch.randn(3, 4, 8, 8, dtype=torch.float64)[..., :6, :6]).shape == (3, 5)
    assert swapped(to_poincare(model, "head")) == ("8",)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="found no linear layer, 2-D convolution or batch normalisation"):
        to_poincare(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match=r"found no linear layer that .* got a Conv2d"):
        to_poincare(nn.Conv2d(4, 4, 3), "head")
    with pytest.raises(ValueError, match="unknown where 'tail'"):
        to_poincare(nn.Linear(2, 2), "tail")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="c must be positive"):
        to_poincare(nn.Linear(2, 2), c=0)
