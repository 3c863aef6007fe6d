"""Gated positional self-attention (d'Ascoli et al. 2021, arXiv:2103.10697): attention that starts as a convolution.

:class:`GPSA` mixes attention by content with attention by position, and learns for each head how much of which.
:meth:`GPSA.from_conv` writes a convolution as such a layer, :meth:`GPSA.like` replaces an attention layer.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import sizes
from netwright.layers.attention import Attention, merge_heads, split_heads

# of content in a layer that is to equal a convolution: 1 − σ(30) is 0 beside 1 in float32
_CLOSED = 30.0


class GPSA(nn.Module):
    """Self-attention with a learned gate in every head between content and position.

    The weights of head h are

        A_h = (1 − σ(λ_h)) · softmax(q kᵀ / √d) + σ(λ_h) · softmax(v_hᵀ r_ij),   r_ij = (dx, dy, dx² + dy²),

    where dx, dy lead from patch i to patch j of the grid. At the start head h looks at the offset Δ_h, one of a
    √H×√H square: v_h = α·(2Δx, 2Δy, −1), so that its positional score is −α‖(dx, dy) − Δ_h‖² and a constant, as in a
    convolution with a soft kernel. If the number of heads is not a square, those beyond the largest square below it
    start at random.

    The positional weights do not depend on the input and are a product of those along x and those along y, which is
    how they are applied: no weight of every pair of tokens is stored for them.

    Args:
        dim: Width of the tokens ``(batch, tokens, dim)``; tokens are the patches of the grid, row by row.
        num_heads: Number of heads H.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
        locality_strength: α > 0: how narrow the kernels are at the start.
        local_init: Whether to start with the offsets, and with the identity as values; else at random.
        grid: Height and width of the grid of patches; square and as large as the input says if not given.
        prefix_tokens: That many tokens before the patches, such as a class token, have no place in the grid: they
            attend by content alone, and patches attend to them by content alone.
        head_dim: Width of the values of a head; ``dim / num_heads`` if not given.
        out_dim: Width of the output; ``dim`` if not given.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If ``num_heads`` does not divide ``dim`` and no ``head_dim`` is given, ``locality_strength`` is not
            positive, or, in forward, the number of tokens fits no square grid or not the given one.

    Source:
        arXiv:2103.10697, sections 3 and 4. The positional bias has no effect (a softmax does not see it) and is kept
        for the published counts. Prefix tokens, ``head_dim`` and ``out_dim`` are not in the paper.

    Example:
        >>> layer = GPSA(16, num_heads=4)
        >>> tokens = torch.randn(2, 49, 16)
        >>> layer(tokens).shape, layer.nonlocality(tokens).shape
        (torch.Size([2, 49, 16]), torch.Size([4]))
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        locality_strength: float = 1.0,
        local_init: bool = True,
        grid: int | tuple[int, int] | None = None,
        prefix_tokens: int = 0,
        head_dim: int | None = None,
        out_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("num_heads", num_heads, 1)
        checks.positive("locality_strength", locality_strength)
        checks.at_least("prefix_tokens", prefix_tokens, 0)
        if head_dim is None:
            checks.divisible("dim", dim, "num_heads", num_heads)
            head_dim = dim // num_heads
        self.dim = dim
        self.num_heads = num_heads
        self.locality_strength = locality_strength
        self.grid = None if grid is None else (sizes("grid", grid, 2)[0], sizes("grid", grid, 2)[1])
        self.prefix_tokens = prefix_tokens
        inner = num_heads * head_dim
        self.qk = nn.Linear(dim, 2 * inner, bias=qkv_bias, device=device, dtype=dtype)
        self.v = nn.Linear(dim, inner, bias=qkv_bias, device=device, dtype=dtype)
        self.projection = nn.Linear(inner, out_dim or dim, device=device, dtype=dtype)
        # parameters of their own, and no nn.Linear: what replaces linear layers has to leave these alone
        self.position_weight = nn.Parameter(torch.empty(num_heads, 3, device=device, dtype=dtype))
        self.position_bias = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        self.gate = nn.Parameter(torch.ones(num_heads, device=device, dtype=dtype))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters(local_init)

    def reset_parameters(self, local_init: bool = True) -> None:
        """Draw new weights; with ``local_init`` the heads look at their offsets and the values are the tokens."""
        nn.init.trunc_normal_(self.position_weight, std=0.02)
        nn.init.zeros_(self.position_bias)
        for linear in (self.qk, self.v, self.projection):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.ones_(self.gate)
        if local_init:
            nn.init.eye_(self.v.weight)
            kernel = math.isqrt(self.num_heads)
            steps = torch.arange(kernel) - (kernel - 1) / 2 if kernel % 2 == 0 else torch.arange(kernel) - kernel // 2
            self._look_at(torch.cartesian_prod(steps, steps).view(-1, 2), self.locality_strength)

    @torch.no_grad()
    def _look_at(self, offsets: Tensor, strength: float) -> None:
        """Make head h look at row h of ``offsets``, (x, y)."""
        weights = torch.cat([2 * offsets, -torch.ones(len(offsets), 1)], dim=1) * strength
        self.position_weight[: len(offsets)] = weights.to(self.position_weight)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, grid: int | tuple[int, int] | None = None) -> Self:
        """The attention layer that equals a convolution of odd kernel, one head for each of its positions.

        Tokens ``(batch, height · width, in_channels)`` to ``(…, out_channels)``, as ``conv`` computes them with padding
        of half its kernel. Where its kernel reaches over the border, attention finds the nearest patch there is: the
        layer equals ``conv`` everywhere with ``padding_mode="replicate"``, and away from the border with zeros. Its
        gates are closed to content, so closed that their gradient is about 0: to let training open them, lower
        ``gate``.

        Args:
            conv: Convolution with stride 1 and one group.
            grid: See :class:`GPSA`.

        Raises:
            InputError: If the kernel is even, or stride or groups are not 1.
        """
        if any(size % 2 == 0 for size in conv.kernel_size) or set(conv.stride) != {1} or conv.groups != 1:
            checks.fail("conv must have an odd kernel, stride 1 and one group", conv)
        height, width = conv.kernel_size
        heads, channels = height * width, conv.in_channels
        weight = conv.weight.detach()
        layer = cls(
            channels,
            heads,
            local_init=False,
            grid=grid,
            head_dim=channels,
            out_dim=conv.out_channels,
            device=weight.device,
            dtype=weight.dtype,
        )
        y = (torch.arange(height) - height // 2) * conv.dilation[0]
        x = (torch.arange(width) - width // 2) * conv.dilation[1]
        offsets = torch.cartesian_prod(y, x).view(-1, 2).flip(1)
        # the next best patch is 1 away in squared distance, so that its weight is e⁻¹⁰⁰
        layer._look_at(offsets.float(), strength=100.0)
        with torch.no_grad():
            layer.gate.fill_(_CLOSED)
            layer.v.weight.copy_(torch.eye(channels).repeat(heads, 1))
            layer.projection.weight.copy_(weight.flatten(2).transpose(1, 2).flatten(1))
            layer.projection.bias.copy_(torch.zeros(conv.out_channels) if conv.bias is None else conv.bias)
        return layer

    @classmethod
    def like(
        cls,
        attention: Attention | nn.MultiheadAttention,
        *,
        locality_strength: float = 1.0,
        grid: int | tuple[int, int] | None = None,
        prefix_tokens: int = 0,
    ) -> Self:
        """A new layer in place of a self-attention, of its width, heads, biases and dropout.

        ``nn.MultiheadAttention`` has another signature: wrap the new layer in
        :class:`~netwright.layers.attention.AsMultiheadAttention`.

        Raises:
            InputError: If the attention's keys or values have another width than its queries.
        """
        if isinstance(attention, nn.MultiheadAttention):
            if (attention.kdim, attention.vdim) != (attention.embed_dim,) * 2:
                checks.fail("attention must have keys and values of the width of its queries", attention)
            dim, bias, drop = attention.embed_dim, attention.in_proj_bias is not None, attention.dropout
        else:
            dim, bias, drop = attention.dim, attention.qkv.bias is not None, 0.0
        weight = next(attention.parameters())
        return cls(
            dim,
            attention.num_heads,
            bias,
            drop,
            locality_strength=locality_strength,
            grid=grid,
            prefix_tokens=prefix_tokens,
            device=weight.device,
            dtype=weight.dtype,
        )

    def attention(self, input: Tensor) -> Tensor:
        """The weights ``(batch, num_heads, tokens, tokens)``; every row adds up to 1."""
        height, width = self._grid(input)
        q, k = (split_heads(part, self.num_heads) for part in self.qk(input).chunk(2, dim=-1))
        content = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        along_y, along_x = self._along_axes(height, width)
        patches = height * width
        position = torch.einsum("hij,hkl->hikjl", along_y, along_x).reshape(-1, patches, patches)
        position = functional.pad(position, (self.prefix_tokens, 0, self.prefix_tokens, 0))
        gate = functional.pad(self._gates().expand(-1, patches, 1), (0, 0, self.prefix_tokens, 0))
        weights: Tensor = torch.lerp(content, position.to(content.dtype), gate.to(content.dtype))
        return weights

    def forward(self, input: Tensor) -> Tensor:
        height, width = self._grid(input)
        v = split_heads(self.v(input), self.num_heads)
        if self.training and self.attn_drop.p > 0:
            mixed = self.attn_drop(self.attention(input)).to(v.dtype) @ v
        else:
            q, k = (split_heads(part, self.num_heads) for part in self.qk(input).chunk(2, dim=-1))
            mixed = functional.scaled_dot_product_attention(q, k, v)
            gate = self._gates().to(mixed.dtype)
            by_position = self._mix_by_position(v, height, width)
            if self.prefix_tokens:
                prefix, patches = mixed[:, :, : self.prefix_tokens], mixed[:, :, self.prefix_tokens :]
                mixed = torch.cat([prefix, torch.lerp(patches, by_position, gate)], dim=2)
            else:
                mixed = torch.lerp(mixed, by_position, gate)
        output: Tensor = self.proj_drop(self.projection(merge_heads(mixed)))
        return output

    @torch.no_grad()
    def nonlocality(self, input: Tensor) -> Tensor:
        """How far each head looks: Σ_j A_ij · ‖i − j‖ in patches, mean over patches i and the batch; ``(num_heads,)``.

        Weights on prefix tokens, which have no place, are left out, and the rest of a row adds up to 1 again.
        """
        height, width = self._grid(input)
        weights = self.attention(input)[:, :, self.prefix_tokens :, self.prefix_tokens :]
        weights = weights / weights.sum(dim=-1, keepdim=True)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([y.flatten(), x.flatten()], dim=1).to(weights)
        distances = (places[:, None] - places).square().sum(-1).sqrt()
        return (weights * distances).sum(-1).mean(dim=(0, 2))

    def _gates(self) -> Tensor:
        return self.gate.sigmoid().view(-1, 1, 1)

    def _grid(self, input: Tensor) -> tuple[int, int]:
        checks.dimensions("input", input, "(batch, tokens, dim)")
        checks.size("input", input, 2, self.dim)
        patches = input.shape[1] - self.prefix_tokens
        if self.grid is None:
            side = math.isqrt(max(0, patches))
            if patches < 1 or side**2 != patches:
                prefix = f" after {self.prefix_tokens} prefix tokens" if self.prefix_tokens else ""
                checks.fail(f"the number of tokens{prefix} must be a square, or a grid be given", patches)
            return side, side
        if self.grid[0] * self.grid[1] != patches:
            checks.fail(f"the tokens must fill the grid {self.grid[0]}×{self.grid[1]}", patches)
        return self.grid

    def _along_axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Positional weights ``(num_heads, from, to)`` along y and x: their product is the softmax over all patches."""
        to_x, to_y, squared = self.position_weight[..., None, None].unbind(1)

        def weights(linear: Tensor, size: int) -> Tensor:
            places = torch.arange(size, device=linear.device, dtype=linear.dtype)
            steps = places - places[:, None]
            found = (linear * steps + squared * steps.square()).softmax(dim=-1)
            # far patches have weights that cannot be told from 0 beside 1, down to denormal numbers, which are slow
            return found.masked_fill(found < torch.finfo(found.dtype).eps ** 2, 0.0)

        # the bias is the same for all patches and cancels; it stays in the graph, for wrappers that wait for gradients
        return weights(to_y, height), weights(to_x + 0 * self.position_bias[:, None, None], width)

    def _mix_by_position(self, v: Tensor, height: int, width: int) -> Tensor:
        """The values ``(batch, num_heads, tokens, head_dim)`` mixed along y, then along x; prefix tokens left out."""
        along_y, along_x = (weights.to(v.dtype) for weights in self._along_axes(height, width))
        patches = v[:, :, self.prefix_tokens :]
        batch, heads, _, width_of_head = patches.shape
        rows = along_y @ patches.reshape(batch, heads, height, width * width_of_head)
        mixed = along_x[:, None] @ rows.view(batch, heads, height, width, width_of_head)
        return mixed.flatten(2, 3)


__all__ = ["GPSA"]
