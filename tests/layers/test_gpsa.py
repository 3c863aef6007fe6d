"""Tests of ``netwright.layers.gpsa``."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from netwright.layers.attention import AsMultiheadAttention, Attention
from netwright.layers.gpsa import GPSA


def naive_weights(layer: GPSA, x: Tensor, height: int, width: int) -> Tensor:
    """Equation (7) of the paper, with one softmax over all patches."""
    y, x_ = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dy, dx = (p.flatten()[None] - p.flatten()[:, None] for p in (y, x_))
    r = torch.stack([dx, dy, dx**2 + dy**2], dim=-1).to(x)
    position = nn.functional.linear(r, layer.position_weight, layer.position_bias).permute(2, 0, 1).softmax(-1)
    q, k = layer.qk(x).unflatten(-1, (2, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    content = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    gate = layer.gate.sigmoid().view(-1, 1, 1)
    weights = (1 - gate) * content + gate * position
    return weights / weights.sum(-1, keepdim=True)


def disturbed(layer: GPSA) -> GPSA:
    """All parameters away from their special start."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 4, 5]), st.booleans())
def test_weights_and_output_are_those_of_the_formula(height: int, width: int, heads: int, bias: bool) -> None:
    layer = disturbed(GPSA(4 * heads, heads, bias, grid=(height, width))).double()
    x = torch.randn(2, height * width, 4 * heads, dtype=torch.float64)
    expected = naive_weights(layer, x, height, width)
    torch.testing.assert_close(layer.attention(x), expected)
    v = layer.v(x).unflatten(-1, (heads, -1)).transpose(1, 2)
    torch.testing.assert_close(layer(x), layer.projection((expected @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((5, 3), 1), ((3, 3), (1, 2)), ((1, 1), 1)])
@pytest.mark.parametrize("grid", [(6, 6), (5, 8)])
def test_equals_the_convolution_that_it_is_made_from(
    kernel: tuple[int, int], dilation: int | tuple[int, int], grid: tuple[int, int]
) -> None:
    conv = nn.Conv2d(3, 5, kernel, padding="same", dilation=dilation, padding_mode="replicate")
    layer = GPSA.from_conv(conv, grid)
    picture = torch.randn(2, 3, *grid)
    tokens = picture.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(tokens), conv(picture).flatten(2).transpose(1, 2))
    torch.testing.assert_close(layer.attention(tokens).sum(-1), torch.ones(2, layer.num_heads, tokens.shape[1]))


def test_with_zeros_around_the_picture_it_equals_the_convolution_away_from_the_border() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    picture = torch.randn(2, 3, 7, 7)
    out = GPSA.from_conv(conv)(picture.flatten(2).transpose(1, 2)).transpose(1, 2).view(2, 5, 7, 7)
    expected = conv(picture)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert not torch.allclose(out, expected)


@pytest.mark.parametrize(("heads", "placed"), [(4, 4), (9, 9), (5, 4), (3, 1), (16, 16)])
def test_heads_start_at_the_offsets_of_a_square(heads: int, placed: int) -> None:
    layer = GPSA(12 * heads, heads, locality_strength=1.5)
    side = math.isqrt(heads)
    centre = (side - 1) / 2 if side % 2 == 0 else side // 2
    offsets = {(h1 - centre, h2 - centre) for h1 in range(side) for h2 in range(side)}
    weights = layer.position_weight
    assert {(x / 3, y / 3) for x, y in weights[:placed, :2].tolist()} == offsets
    assert weights[:placed, 2].tolist() == [-1.5] * placed
    assert weights[placed:].abs().max().item() < 0.1 if placed < heads else len(weights) == placed
    assert torch.equal(layer.v.weight, torch.eye(12 * heads))
    assert layer.gate.sigmoid().tolist() == pytest.approx([0.7310586] * heads)


def test_gates_decide_between_content_and_position_and_learn_to_leave_locality() -> None:
    layer = GPSA(8, 4)
    x, other = torch.randn(2, 1, 16, 8)
    nn.init.constant_(layer.gate, 40.0)
    torch.testing.assert_close(layer.attention(x), layer.attention(other))  # position alone
    nn.init.constant_(layer.gate, -40.0)
    moved = torch.roll(x, 1, dims=1)
    torch.testing.assert_close(layer(moved), torch.roll(layer(x), 1, dims=1))  # content knows no places

    nn.init.constant_(layer.gate, 1.0)
    target = torch.flip(x, dims=[1])  # far away for most patches
    optimizer = torch.optim.Adam(layer.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert layer.gate.sigmoid().mean().item() < 0.7


def test_nonlocality_is_the_mean_distance() -> None:
    layer = GPSA(8, 4, locality_strength=50.0, grid=(3, 4))
    nn.init.constant_(layer.gate, 40.0)
    with torch.no_grad():
        layer._look_at(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), 50.0)
    x = torch.randn(2, 12, 8)
    # patches whose goal lies outside look at the border: 3 of 4 columns move by 1, 1 row by 2 and 1 by 1
    corner = [math.hypot(min(1, 3 - x), min(1, 2 - y)) for x in range(4) for y in range(3)]
    assert layer.nonlocality(x).tolist() == pytest.approx([0, 3 / 4, 3 / 3, sum(corner) / 12], abs=1e-5)
    nn.init.constant_(layer.gate, -40.0)
    nn.init.zeros_(layer.qk.weight)  # uniform attention
    places = [(i // 4, i % 4) for i in range(12)]
    assert layer.nonlocality(x)[0].item() == pytest.approx(sum(math.dist(a, b) for a in places for b in places) / 144)


def test_prefix_tokens_attend_by_content_alone() -> None:
    layer = disturbed(GPSA(8, 4, prefix_tokens=1))
    x = torch.randn(2, 10, 8)
    weights = layer.attention(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 10))
    v = layer.v(x).unflatten(-1, (4, -1)).transpose(1, 2)
    torch.testing.assert_close(layer(x), layer.projection((weights @ v).transpose(1, 2).flatten(2)))
    before = layer(x)[:, 0]
    nn.init.constant_(layer.gate, 3.0)
    torch.testing.assert_close(layer(x)[:, 0], before)
    nn.init.constant_(layer.gate, 40.0)
    torch.testing.assert_close(layer.attention(x)[:, :, 1:, 0], torch.zeros(2, 4, 9))
    assert torch.isfinite(layer.nonlocality(x)).all()


@pytest.mark.parametrize("drop", [0.0, 1e-9])  # the two paths of forward
def test_gradients(drop: float) -> None:
    layer = disturbed(GPSA(4, 2, True, attn_drop=drop, grid=(2, 3), prefix_tokens=1)).double()
    x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_dropout_of_weights_and_output() -> None:
    layer = GPSA(8, 4, attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, 16, 8)
    assert (layer(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_saved_and_loaded_on_meta_under_autocast_and_traced(tmp_path) -> None:
    layer = disturbed(GPSA(8, 4, prefix_tokens=1)).eval()
    x = torch.randn(2, 17, 8)
    save_model(layer, str(tmp_path / "w.safetensors"))
    other = GPSA(8, 4, prefix_tokens=1).eval()
    load_model(other, str(tmp_path / "w.safetensors"))
    assert torch.equal(other(x), layer(x))
    assert GPSA(8, 4, device="meta")(torch.empty(2, 16, 8, device="meta")).shape == (2, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
        low_weights = layer.attention(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.1, atol=0.1)
    torch.testing.assert_close(low_weights.float(), layer.attention(x), rtol=0.1, atol=0.05)
    low.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("batch_first", [True, False])
def test_takes_the_place_of_attention(batch_first: bool) -> None:
    plain = Attention(8, 4, qkv_bias=False).double()
    layer = GPSA.like(plain, locality_strength=2.0, prefix_tokens=1)
    assert (layer.dim, layer.num_heads, layer.qk.bias, layer.locality_strength) == (8, 4, None, 2.0)
    assert layer.gate.dtype == torch.float64
    torchs = nn.MultiheadAttention(8, 4, dropout=0.1, batch_first=batch_first)
    layer = GPSA.like(torchs)
    assert (layer.qk.bias is not None, layer.attn_drop.p) == (True, 0.1)
    stand_in = AsMultiheadAttention(layer, batch_first).eval()
    x = torch.randn(16, 16, 8)
    out, weights = stand_in(x, x, x)
    assert out.shape == torchs(x, x, x)[0].shape
    assert weights is not None
    assert weights.shape == (16, 16, 16)
    sample = x[0]
    assert stand_in(sample, sample, sample, need_weights=False)[0].shape == (16, 8)


def test_bad_input() -> None:
    for arguments, message in (
        ({"dim": 10, "num_heads": 4}, "dim must be divisible by num_heads = 4, got 10"),
        ({"dim": 8, "num_heads": 4, "locality_strength": 0.0}, "locality_strength must be positive, got 0.0"),
        ({"dim": 8, "num_heads": 4, "locality_strength": -1.0}, "locality_strength must be positive"),
        ({"dim": 8, "num_heads": 0}, "num_heads must be at least 1"),
        ({"dim": 8, "num_heads": 4, "prefix_tokens": -1}, "prefix_tokens must be at least 0"),
        ({"dim": 8, "num_heads": 4, "grid": (2, 2, 2)}, "grid must be a number or 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            GPSA(**arguments)
    for layer, shape, message in (
        (GPSA(8, 4), (2, 15, 8), r"the number of tokens must be a square, or a grid be given, got 15"),
        (GPSA(8, 4, prefix_tokens=1), (2, 16, 8), r"tokens after 1 prefix tokens must be a square.* got 15"),
        (GPSA(8, 4, grid=(2, 3)), (2, 7, 8), r"must fill the grid 2×3, got 7"),
        (GPSA(8, 4), (2, 16, 9), r"dimension 2 of input must have size 8"),
        (GPSA(8, 4), (16, 8), r"input must have shape \(batch, tokens, dim\)"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(torch.zeros(shape))
    for conv in (nn.Conv2d(3, 3, 2), nn.Conv2d(3, 3, 3, stride=2), nn.Conv2d(4, 4, 3, groups=2)):
        with pytest.raises(ValueError, match="conv must have an odd kernel, stride 1 and one group"):
            GPSA.from_conv(conv)
    with pytest.raises(ValueError, match="keys and values of the width of its queries"):
        GPSA.like(nn.MultiheadAttention(8, 4, kdim=6))


def test_copies_do_not_share() -> None:
    layer = GPSA(8, 4)
    assert copy.deepcopy(layer).gate is not layer.gate
