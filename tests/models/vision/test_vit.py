"""Tests of ``netwright.models.vision.vit``."""

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.models.vision.vit import Attention, DropPath, LayerScale, PatchEmbed, VisionTransformer


@pytest.mark.parametrize(("dim", "heads", "count"), [(192, 3, 5_717_416), (384, 6, 22_050_664), (768, 12, 86_567_656)])
def test_published_counts(dim: int, heads: int, count: int) -> None:
    """DeiT-Ti, DeiT-S and DeiT-B (Touvron et al. 2020)."""
    with torch.device("meta"):
        model = VisionTransformer(224, 16, num_classes=1000, dim=dim, depth=12, num_heads=heads)
    assert count_params(model) == count


def test_attention_is_torchs() -> None:
    mine, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(mine.qkv.weight)
        theirs.in_proj_bias.copy_(mine.qkv.bias)
        theirs.out_proj.weight.copy_(mine.projection.weight)
        theirs.out_proj.bias.copy_(mine.projection.bias)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(mine(x), theirs(x, x, x, need_weights=False)[0])


def test_patches_are_in_reading_order() -> None:
    embed = PatchEmbed(4, 2, 1, 4)
    with torch.no_grad():
        embed.projection.weight.copy_(torch.eye(4).reshape(4, 1, 2, 2))
        embed.projection.bias.zero_()
    tokens = embed(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert tokens[0, 0].tolist() == [0, 1, 4, 5]
    assert tokens[0, 1].tolist() == [2, 3, 6, 7]


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    layer = DropPath(0.25)
    out = layer(torch.ones(20_000, 3))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert set(out.sum(1).tolist()) == {0.0, 4.0}
    assert layer.eval()(out) is out


def test_layer_scale_starts_small() -> None:
    torch.testing.assert_close(LayerScale(3, 0.1)(torch.ones(2, 3)), torch.full((2, 3), 0.1))


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="image_size must be divisible by patch_size = 5, got 32"):
        VisionTransformer(32, 5)
    with pytest.raises(ValueError, match="dim must be divisible by num_heads = 5, got 64"):
        VisionTransformer(32, 4, dim=64, num_heads=5)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.0"):
        DropPath(1.0)
