"""Multi-head self-attention, and what lets another self-attention stand in for ``nn.MultiheadAttention``.

Tokens are ``(batch, tokens, dim)``. Any module that maps tokens to tokens of the same shape and has a method
``attention(tokens)``, which gives the weights ``(batch, heads, tokens, tokens)``, counts as a self-attention here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """``(batch, tokens, num_heads · d)`` to ``(batch, num_heads, tokens, d)``."""
    return tokens.view(*tokens.shape[:-1], num_heads, -1).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """``(batch, num_heads, tokens, d)`` to ``(batch, tokens, num_heads · d)``: the inverse of :func:`split_heads`."""
    return heads.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention: softmax(Q Kᵀ / √d) V for each head of size d = dim / num_heads.

    Args:
        dim: Width of the tokens ``(batch, tokens, dim)``, of input and output.
        num_heads: Number of heads; has to divide ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If ``num_heads`` does not divide ``dim``.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.

    Example:
        >>> Attention(16, num_heads=4)(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.divisible("dim", dim, "num_heads", num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.projection = nn.Linear(dim, dim, device=device, dtype=dtype)

    def attention(self, input: Tensor) -> Tensor:
        """The weights ``(batch, num_heads, tokens, tokens)``; every row adds up to 1."""
        q, k, _ = (split_heads(part, self.num_heads) for part in self.qkv(input).chunk(3, dim=-1))
        scores: Tensor = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1)

    def forward(self, input: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(input).chunk(3, dim=-1))
        output: Tensor = self.projection(merge_heads(functional.scaled_dot_product_attention(q, k, v)))
        return output


class AsMultiheadAttention(nn.Module):
    """A self-attention in the place of ``nn.MultiheadAttention``, for instance in ``nn.TransformerEncoderLayer``.

    Args:
        attention: Self-attention over ``(batch, tokens, dim)``.
        batch_first: Whether the tokens come as ``(batch, tokens, dim)`` or as ``(tokens, batch, dim)``; those of one
            sample, ``(tokens, dim)``, are taken in both cases.

    Raises:
        InputError: In forward, if key or value is another tensor than the query, or there is a mask.

    Example:
        >>> layer = nn.TransformerEncoderLayer(16, 4, batch_first=True)
        >>> layer.self_attn = AsMultiheadAttention(Attention(16, 4))
        >>> layer(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    # torch's encoder layer looks at these: its fused path, which reads weights that are not here, has to be off
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.Module, batch_first: bool = True) -> None:
        super().__init__()
        self.self_attention = attention
        self.batch_first = batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs of the shape of the query, and the attention weights ``(batch, [heads,] tokens, tokens)`` or None."""
        if key is not query or value is not query:
            raise checks.InputError("self-attention needs one tensor as query, key and value, got different ones")
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise checks.InputError("this self-attention takes no mask, got one")
        tokens = query
        if query.ndim == 2:
            tokens = query[None]
        elif not self.batch_first:
            tokens = query.transpose(0, 1)
        output = self.self_attention(tokens)
        weights: Tensor | None = None
        if need_weights:
            weights = self.self_attention.attention(tokens)  # type: ignore[operator]
            weights = weights.mean(dim=1) if average_attn_weights else weights
        if query.ndim == 2:
            return output[0], None if weights is None else weights[0]
        return (output if self.batch_first else output.transpose(0, 1)), weights


__all__ = ["AsMultiheadAttention", "Attention", "merge_heads", "split_heads"]
