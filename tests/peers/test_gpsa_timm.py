"""Gated positional self-attention against timm's, with the same weights."""

import pytest
import torch

from netwright.layers.gpsa import GPSA

convit = pytest.importorskip("timm.models.convit", reason="timm is not installed")


@pytest.mark.parametrize("heads", [4, 9, 5])
def test_timm_computes_the_same(heads: int) -> None:
    theirs = convit.GPSA(12 * heads, heads, qkv_bias=True)
    mine = GPSA(12 * heads, heads, qkv_bias=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    names = {"proj": "projection", "pos_proj.weight": "position_weight", "pos_proj.bias": "position_bias"}
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in (*names.items(), ("gating_param", "gate")):
            if name == old or name.startswith(f"{old}."):
                name = new + name.removeprefix(old)
                break
        state[name] = value
    mine.load_state_dict(state)
    x = torch.randn(2, 49, 12 * heads)
    theirs.rel_indices = theirs.get_rel_indices(49)
    torch.testing.assert_close(mine.attention(x), theirs.get_attention(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-5, rtol=1e-5)
