"""EvoNorm against timm's: outputs, gradients, running variance."""

import pytest
import torch

from netwright.layers import evonorm

timm_layers = pytest.importorskip("timm.layers", reason="timm needs torchvision")


@pytest.mark.parametrize("kind", evonorm.KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", [True, False])
def test_timm_computes_the_same(kind: str, training: bool, act: bool) -> None:
    options = {"groups": 2} if kind.startswith("S") else {}
    mine = getattr(evonorm, f"EvoNorm{kind}")(8, apply_act=act, **options).train(training)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.normal_()
    # timm's default of B0 is 1e-3
    theirs = getattr(timm_layers, f"EvoNorm2d{kind}")(8, apply_act=act, eps=1e-5, **options).train(training)
    theirs.load_state_dict(mine.state_dict())
    for _ in range(2):
        x = torch.randn(4, 8, 5, 6) * 3 + 1
        weights = torch.randn_like(x)
        results = []
        for layer in (mine, theirs):
            layer.zero_grad()
            y = x.clone().requires_grad_()
            out = layer(y)
            (out * weights).sum().backward()
            results.append([out, y.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
