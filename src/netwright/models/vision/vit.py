"""Vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) from exchangeable blocks.

Tokens are ``(batch, tokens, dim)`` throughout. A block takes a factory for its attention, so that a paper's attention
can be compared with the plain one in otherwise equal networks.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.attention import Attention


class PatchEmbed(nn.Module):
    """Patches of a picture as tokens: ``(batch, channels, height, width)`` to ``(batch, tokens, dim)``."""

    def __init__(self, image_size: int, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        checks.divisible("image_size", image_size, "patch_size", patch_size)
        self.grid = image_size // patch_size
        self.projection = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, input: Tensor) -> Tensor:
        patches: Tensor = self.projection(input)
        return patches.flatten(2).transpose(1, 2)


class Mlp(nn.Sequential):
    """Two linear layers with GELU between, applied to every token."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drop a sample's whole branch in training."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        checks.between("rate", rate, 0, 1, open_high=True)
        self.rate = rate

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return input
        keep = torch.rand(len(input), *[1] * (input.ndim - 1), device=input.device) >= self.rate
        return input * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, small at first (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale


class TransformerBlock(nn.Module):
    """Pre-norm block: x ← x + attention(norm(x)), then x ← x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        attention: Callable[[int, int], nn.Module] = Attention,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        self.attention = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), attention(dim, num_heads), scale())
        self.mlp = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), Mlp(dim, int(dim * mlp_ratio)), scale())
        self.drop_path = DropPath(drop_path)

    def forward(self, input: Tensor) -> Tensor:
        mixed = input + self.drop_path(self.attention(input))
        output: Tensor = mixed + self.drop_path(self.mlp(mixed))
        return output


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, blocks, a final norm and a linear classifier on the class token.

    Args:
        image_size: Height and width of the pictures ``(batch, in_channels, image_size, image_size)``.
        patch_size: Height and width of a patch.
        in_channels: Channels of the pictures.
        num_classes: Outputs ``(batch, num_classes)``.
        dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Heads of every attention.
        mlp_ratio: Width of the MLPs' hidden layer, as a multiple of ``dim``.
        drop_path: Rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        layer_scale: Initial value of :class:`LayerScale`; none if not given.
        attention: ``attention(dim, num_heads)`` makes the attention of a block.

    Example:
        >>> with torch.device("meta"):
        ...     deit_tiny = VisionTransformer(224, 16, num_classes=1000, dim=192, depth=12, num_heads=3)
        >>> sum(parameter.numel() for parameter in deit_tiny.parameters())
        5717416
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        num_classes: int = 10,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        *,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        attention: Callable[[int, int], nn.Module] = Attention,
    ) -> None:
        super().__init__()
        self.embed = PatchEmbed(image_size, patch_size, in_channels, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, self.embed.grid**2 + 1, dim))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    dim,
                    num_heads,
                    mlp_ratio,
                    drop_path=drop_path * index / max(1, depth - 1),
                    layer_scale=layer_scale,
                    attention=attention,
                )
                for index in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.apply(init_linear)

    def forward(self, input: Tensor) -> Tensor:
        tokens = self.embed(input)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        output: Tensor = self.classifier(self.norm(self.blocks(tokens))[:, 0])
        return output


def init_linear(module: nn.Module) -> None:
    """Start of all linear layers of a transformer: normal with deviation 0.02, truncated; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


__all__ = [
    "Attention",
    "DropPath",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "TransformerBlock",
    "VisionTransformer",
    "init_linear",
]
