"""The nine architectures of SoundnessBench (Zhou et al. 2024, arXiv:2412.03154): CNNs, MLPs, a vision transformer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.attention import Attention
from netwright.models.vision.classic import MLP
from netwright.models.vision.vit import PatchEmbed

_CHANNELS = {1: (10,), 2: (5, 10), 3: (5, 10, 20)}


def cnn(
    convs: int = 1, channels: int = 1, size: int = 5, *, act: Callable[[], nn.Module] = nn.ReLU, pool: bool = False
) -> nn.Sequential:
    """Convolutions 3×3 that keep the size, then 1000-100-20-2: 353,262 parameters with one of them and one channel.

    With three there is no activation after the last, as in the published networks.

    Args:
        convs: 1, 2 or 3 convolutions (10; 5 and 10; 5, 10 and 20 filters).
        channels: Channels of the inputs ``(batch, channels, size, size)``.
        size: Their height and width.
        act: Makes the activation: ReLU, Tanh or Sigmoid in the benchmark.
        pool: Average pooling 3×3 with stride 1 after the convolutions.

    Example:
        >>> sum(p.numel() for p in cnn(3).parameters())
        605492
    """
    checks.known("number of convolutions", str(convs), map(str, _CHANNELS))
    checks.at_least("channels", channels, 1)
    checks.at_least("size", size, 1)
    layers: list[nn.Module] = []
    filters = channels
    for width in _CHANNELS[convs]:
        layers += [nn.Conv2d(filters, width, 3, padding=1), act()]
        filters = width
    if convs == 3:
        layers.pop()
    if pool:
        layers.append(nn.AvgPool2d(3, stride=1, padding=1))
    layers += [nn.Flatten(), *list(MLP(filters * size * size, (1000, 100, 20), 2, act=act))[1:]]
    return nn.Sequential(*layers)


def mlp(hidden: int = 4, in_features: int = 10) -> MLP:
    """``hidden`` layers, 100-1000-…-1000, then 20-2: 2,124,162 parameters with four of them and ten inputs.

    Example:
        >>> sum(p.numel() for p in mlp(4).parameters())
        2124162
    """
    checks.at_least("hidden", hidden, 2)
    return MLP(in_features, (100, *[1000] * (hidden - 1), 20), 2)


class TokenNorm(nn.BatchNorm1d):
    """Batch normalisation of tokens ``(batch, tokens, dim)``, a mean and a variance for each of ``dim`` entries."""

    def forward(self, input: Tensor) -> Tensor:
        normed: Tensor = super().forward(input.transpose(1, 2))
        return normed.transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, ratio: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(TokenNorm(dim), Attention(dim, num_heads))
        self.mlp = nn.Sequential(TokenNorm(dim), nn.Linear(dim, ratio * dim), nn.ReLU(), nn.Linear(ratio * dim, dim))

    def forward(self, input: Tensor) -> Tensor:
        tokens = input + self.attention(input)
        mixed: Tensor = tokens + self.mlp(tokens)
        return mixed


class BatchNormViT(nn.Module):
    """A vision transformer that has batch normalisation instead of layer normalisation, and the mean of all tokens.

    The published networks are ``BatchNormViT(channels=1 or 3)``. The bounds and the exact solver of this package do not
    cover attention: of these networks they can only say that they do not know.

    Args:
        size: Height and width of the inputs ``(batch, channels, size, size)``.
        channels: Their channels.
        patch_size: Height and width of a patch.
        dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Heads of every attention.
        ratio: Width of the hidden layers, as a multiple of ``dim``.
        num_classes: Outputs ``(batch, num_classes)``.

    Raises:
        InputError: If ``patch_size`` does not divide ``size``, or ``num_heads`` does not divide ``dim``.

    Example:
        >>> BatchNormViT()(torch.rand(2, 1, 5, 5)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        size: int = 5,
        channels: int = 1,
        *,
        patch_size: int = 1,
        dim: int = 16,
        depth: int = 2,
        num_heads: int = 2,
        ratio: int = 2,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        self.patches = PatchEmbed(size, patch_size, channels, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(self.patches.grid**2 + 1, dim))
        self.blocks = nn.Sequential(*[_Block(dim, num_heads, ratio) for _ in range(depth)])
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, num_classes))

    def forward(self, input: Tensor) -> Tensor:
        patches = self.patches(input)
        first = self.class_token.expand(len(patches), -1, -1)
        tokens = self.blocks(torch.cat([first, patches], 1) + self.positions)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def vit(channels: int = 1, size: int = 5) -> BatchNormViT:
    """The benchmark's :class:`BatchNormViT`: patches 1×1, two heads, width 16, depth 2."""
    return BatchNormViT(size, channels)


_ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn-1": lambda channels, size: cnn(1, channels, size),
    "cnn-2": lambda channels, size: cnn(2, channels, size),
    "cnn-3": lambda channels, size: cnn(3, channels, size),
    "cnn-avgpool": lambda channels, size: cnn(1, channels, size, pool=True),
    "cnn-tanh": lambda channels, size: cnn(1, channels, size, act=nn.Tanh),
    "cnn-sigmoid": lambda channels, size: cnn(1, channels, size, act=nn.Sigmoid),
    "mlp-4": lambda channels, size: mlp(4, channels * size),
    "mlp-5": lambda channels, size: mlp(5, channels * size),
    "vit": vit,
}
ARCHITECTURES = tuple(_ARCHITECTURES)


def architecture(name: str, channels: int = 1, size: int | None = None) -> nn.Module:
    """One of the nine architectures by its name in :data:`ARCHITECTURES`.

    Args:
        name: ``"cnn-1"``, ``"cnn-2"``, ``"cnn-3"``, ``"cnn-avgpool"``, ``"cnn-tanh"``, ``"cnn-sigmoid"``, ``"mlp-4"``,
            ``"mlp-5"`` or ``"vit"``.
        channels: Channels of pictures; an MLP has ``channels · size`` inputs.
        size: Height and width of pictures, or inputs of an MLP; 5 and 10 if not given.

    Raises:
        InputError: If there is none of that name; the message offers a close match.

    Example:
        >>> architecture("mlp-4")(torch.rand(3, 10)).shape
        torch.Size([3, 2])
    """
    checks.known("architecture", name, ARCHITECTURES)
    if size is None:
        size = 10 if name.startswith("mlp") else 5
    return _ARCHITECTURES[name](channels, size)


__all__ = ["ARCHITECTURES", "BatchNormViT", "TokenNorm", "architecture", "cnn", "mlp", "vit"]
