"""Gated positional self-attention against plain attention: time of forward, and memory of the positional weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import amounts, side_by_side
from netwright.cost import saved_bytes
from netwright.layers.attention import Attention
from netwright.layers.gpsa import GPSA


class ExpandedGPSA(GPSA):
    """The form that is easiest to write: positional scores of every pair of tokens, once for every sample."""

    def forward(self, input: Tensor) -> Tensor:
        batch, tokens, _ = input.shape
        side = int(tokens**0.5)
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
        dy, dx = (places - places[:, None]).unbind(-1)
        offsets = torch.stack([dx, dy, dx**2 + dy**2], dim=-1).expand(batch, -1, -1, -1)
        scores = functional.linear(offsets, self.position_weight, self.position_bias).permute(0, 3, 1, 2)
        q, k = self.qk(input).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        content = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        gate = self.gate.sigmoid().view(-1, 1, 1)
        weights = (1 - gate) * content + gate * scores.softmax(-1)
        v = self.v(input).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        output: Tensor = self.projection((weights @ v).transpose(1, 2).flatten(2))
        return output


def main() -> None:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "plain attention": Attention(192, 4, qkv_bias=False),
        "GPSA": GPSA(192, 4),
        "GPSA, weights expanded": ExpandedGPSA(192, 4),
    }
    for batch in (8, 32):
        x = torch.randn(batch, 196, 192)

        def forward(layer: nn.Module, x: Tensor = x) -> Tensor:
            with torch.no_grad():
                output: Tensor = layer(x)
            return output

        def step(layer: nn.Module, x: Tensor = x) -> None:
            torch.autograd.grad(layer(x).sum(), list(layer.parameters()), allow_unused=True)

        for what, run in (("forward", forward), ("forward and backward", step)):
            side_by_side(
                f"{what}, 196 tokens, width 192, 4 heads, batch {batch}",
                {name: lambda layer=layer, run=run: run(layer) for name, layer in layers.items()},  # type: ignore[misc]
                baseline="plain attention",
                rounds=15,
                targets={"GPSA": 1.35} if what == "forward" else None,
            )
    # what the positional part keeps beyond what grows with the batch anyway
    values = {
        name: float(saved_bytes(layer, torch.randn(16, 196, 192)) - saved_bytes(layer, torch.randn(8, 196, 192)))
        for name, layer in layers.items()
    }
    amounts("bytes kept for backward by 8 more samples", values, baseline="plain attention")


if __name__ == "__main__":
    main()
