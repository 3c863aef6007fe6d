"""Tests of ``netwright.layers.attention``."""

import pytest
import torch
from torch import nn

from netwright.layers.attention import AsMultiheadAttention, Attention, merge_heads, split_heads


def same_weights(attention: Attention, reference: nn.MultiheadAttention) -> None:
    state = reference.state_dict()
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    attention.load_state_dict(dict(zip(attention.state_dict(), (state[name] for name in names), strict=True)))


def test_equals_torchs_multihead_attention() -> None:
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    attention = Attention(12, 3)
    same_weights(attention, reference)
    x = torch.randn(2, 5, 12)
    expected, weights = reference(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(attention(x), expected)
    torch.testing.assert_close(attention.attention(x), weights)


def test_heads_split_and_merge() -> None:
    x = torch.randn(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(merge_heads(split_heads(x, 3)), x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 12), (5, 12)])
@pytest.mark.parametrize("average", [True, False])
def test_stands_in_for_torchs(batch_first: bool, shape: tuple[int, ...], average: bool) -> None:
    reference = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    attention = Attention(12, 3)
    same_weights(attention, reference)
    x = torch.randn(shape)
    output, weights = AsMultiheadAttention(attention, batch_first)(x, x, x, average_attn_weights=average)
    expected, expected_weights = reference(x, x, x, average_attn_weights=average)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_stands_in_torchs_encoder(training: bool, batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        expected = encoder(x)
        for layer in encoder.layers:
            attention = Attention(12, 3)
            same_weights(attention, layer.self_attn)
            layer.self_attn = AsMultiheadAttention(attention, batch_first)
        torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="dim must be divisible by num_heads = 5, got 12"):
        Attention(12, 5)
    stand_in = AsMultiheadAttention(Attention(12, 3))
    x = torch.randn(2, 5, 12)
    with pytest.raises(ValueError, match="one tensor as query, key and value"):
        stand_in(x, x.clone(), x)
    with pytest.raises(ValueError, match="takes no mask"):
        stand_in(x, x, x, attn_mask=torch.zeros(5, 5))
