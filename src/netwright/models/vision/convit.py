"""ConViT (d'Ascoli et al. 2021, arXiv:2103.10697): a vision transformer whose first blocks start as convolutions."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.attention import Attention
from netwright.layers.gpsa import GPSA
from netwright.models.vision.vit import PatchEmbed, TransformerBlock, init_linear

# width and heads of the published networks; "+" has 64 channels a head instead of 48
SIZES = {
    "tiny": (192, 4),
    "small": (432, 9),
    "base": (768, 16),
    "tiny+": (256, 4),
    "small+": (576, 9),
    "base+": (1024, 16),
}


class ConViT(nn.Module):
    """Vision transformer with gated positional self-attention in the first blocks.

    Patches with learned positions pass blocks of :class:`~netwright.layers.gpsa.GPSA`; then the class token joins them
    for blocks of plain attention, and a norm and a linear classifier on it follow.

    Args:
        image_size: Height and width of the pictures ``(batch, in_channels, image_size, image_size)``.
        patch_size: Height and width of a patch.
        in_channels: Channels of the pictures.
        num_classes: Outputs ``(batch, num_classes)``.
        dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Heads of every attention.
        gpsa_layers: How many blocks, the first ones, have GPSA; the class token follows them.
        mlp_ratio: Width of the MLPs' hidden layer, as a multiple of ``dim``.
        drop_path: Rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        locality_strength: See :class:`~netwright.layers.gpsa.GPSA`.

    Raises:
        InputError: If the patches do not tile the picture, the heads do not divide the width, there are more GPSA
            blocks than blocks, or, in forward, the picture has another size.

    Source:
        arXiv:2103.10697, section 4 and table 1.

    Example:
        >>> model = ConViT(image_size=32, patch_size=4, num_classes=10, dim=48, depth=6, num_heads=4, gpsa_layers=5)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 4,
        gpsa_layers: int = 10,
        mlp_ratio: float = 4.0,
        *,
        drop_path: float = 0.0,
        locality_strength: float = 1.0,
    ) -> None:
        super().__init__()
        checks.between("gpsa_layers", gpsa_layers, 0, depth)
        self.image_size = image_size
        self.gpsa_layers = gpsa_layers
        self.embed = PatchEmbed(image_size, patch_size, in_channels, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, self.embed.grid**2, dim))
        local = partial(GPSA, locality_strength=locality_strength)
        plain = partial(Attention, qkv_bias=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                num_heads,
                mlp_ratio,
                drop_path=drop_path * index / max(1, depth - 1),
                attention=local if index < gpsa_layers else plain,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.apply(init_linear)
        for layer in self.attentions():  # the general rule has overwritten theirs
            layer.reset_parameters()

    def attentions(self) -> list[GPSA]:
        """The GPSA layers, from the first to the last."""
        return [module for module in self.blocks.modules() if isinstance(module, GPSA)]

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        if tuple(input.shape[2:]) != (self.image_size, self.image_size):
            checks.fail(f"pictures must be {self.image_size}×{self.image_size}", f"{input.shape[2]}×{input.shape[3]}")
        tokens = self.embed(input) + self.positions
        for index, block in enumerate(self.blocks):
            if index == self.gpsa_layers:
                tokens = self._with_class_token(tokens)
            tokens = block(tokens)
        if self.gpsa_layers == len(self.blocks):
            tokens = self._with_class_token(tokens)
        output: Tensor = self.classifier(self.norm(tokens[:, 0]))
        return output

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)

    @torch.no_grad()
    def nonlocality(self, input: Tensor) -> Tensor:
        """How far the heads of every GPSA layer look, in patches: ``(gpsa_layers, num_heads)``."""
        tokens = self.embed(input) + self.positions
        found = []
        for block, layer in zip(self.blocks, self.attentions(), strict=False):
            norm: nn.LayerNorm = block.attention[0]  # type: ignore[index, assignment]
            found.append(layer.nonlocality(norm(tokens)))
            tokens = block(tokens)
        return torch.stack(found)


def convit(size: str = "tiny", **options: Any) -> ConViT:
    """A published network: ``"tiny"``, ``"small"``, ``"base"``, or the wider ``"tiny+"``, ``"small+"``, ``"base+"``.

    Args:
        size: Its name.
        options: Further arguments of :class:`ConViT`.

    Source:
        arXiv:2103.10697, table 1.

    Example:
        >>> with torch.device("meta"):
        ...     model = convit("tiny")
        >>> sum(parameter.numel() for parameter in model.parameters())
        5710512
    """
    checks.known("size of ConViT", size, SIZES)
    dim, num_heads = SIZES[size]
    return ConViT(dim=dim, num_heads=num_heads, **options)


__all__ = ["SIZES", "ConViT", "convit"]
