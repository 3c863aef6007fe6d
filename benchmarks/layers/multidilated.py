"""A D2 block with each source convolved once, against one convolution a pair of layers; pseudo-complex convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.layers.multidilated import D2Block, MultiDilatedConv2d
from netwright.layers.pseudo_complex import PseudoComplex, pseudo_complex_conv2d
from netwright.models.signals.aec import ComplexMaskAEC
from netwright.models.signals.wav import cancel_echo

ONCE = "pair by pair, norm and activation once"


class LayerByLayer(nn.Module):
    """The block as the paper writes it: each layer normalises and convolves all earlier ones, L(L+1)/2 convolutions."""

    def __init__(self, block: D2Block) -> None:
        super().__init__()
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        groups = [block.convs[0].in_channels, *block.growth]
        weights = [torch.split(conv.weight, list(block.growth[i:])) for i, conv in enumerate(block.convs)]
        for layer, growth in enumerate(block.growth):
            self.norms.append(nn.BatchNorm2d(sum(groups[: layer + 1])))
            conv = MultiDilatedConv2d(groups[: layer + 1], growth, bias=False)
            with torch.no_grad():
                conv.weight.copy_(torch.cat([weights[i][layer - i] for i in range(layer + 1)], 1))
            self.convs.append(conv)

    def forward(self, x: Tensor) -> Tensor:
        sources = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            sources.append(conv(functional.relu(norm(torch.cat(sources, 1)))))
        return torch.cat(sources[1:], 1)


def pair_by_pair(block: D2Block, x: Tensor) -> Tensor:
    """As many convolutions, but norm and activation of a source once."""
    active, outputs = [block.acts[0](block.norms[0](x))], []
    weights = [torch.split(conv.weight, list(block.growth[i:])) for i, conv in enumerate(block.convs)]
    for layer in range(len(block.growth)):
        parts = [
            functional.conv2d(active[i], weights[i][layer - i], padding=d, dilation=d)
            for i, d in enumerate(block.dilations[: layer + 1])
        ]
        outputs.append(sum(parts[1:], start=parts[0]))
        if layer + 1 < len(block.growth):
            active.append(block.acts[layer + 1](block.norms[layer + 1](outputs[-1])))
    return torch.cat(outputs, 1)


def four_convolutions(layer: PseudoComplex, input: Tensor) -> Tensor:
    """Each real layer on each plane."""
    x_r, x_i = input.unbind(2)
    return torch.stack([layer.real(x_r) - layer.imag(x_i), layer.real(x_i) + layer.imag(x_r)], 2)


def three_convolutions(layer: PseudoComplex, input: Tensor) -> Tensor:
    """Gauss's trick."""
    (x_r, x_i), w_r, w_i = input.unbind(2), layer.real.weight, layer.imag.weight
    k = functional.conv2d(x_r + x_i, w_r, padding=1)
    return torch.stack(
        [k - functional.conv2d(x_i, w_r + w_i, padding=1), k + functional.conv2d(x_r, w_i - w_r, padding=1)], 2
    )


def dense() -> None:
    for growth, batch, size in ((8, 4, (65, 63)), (12, 1, (257, 63))):
        block, x = D2Block(32, growth, 6), torch.randn(batch, 32, *size)
        naive = LayerByLayer(block)
        for form in (naive(x), pair_by_pair(block, x)):
            torch.testing.assert_close(form, block(x), atol=1e-5, rtol=1e-5)
        candidates = {
            "layer by layer": lambda n=naive, x=x: n(x),
            ONCE: lambda b=block, x=x: pair_by_pair(b, x),
            "each source once": lambda b=block, x=x: b(x),
        }
        title = f"D2 block, 32 channels, growth {growth}, L = 6, batch {batch} of {size[0]}×{size[1]}"
        targets = {"each source once": 1 / 1.8}
        with torch.no_grad():
            block.eval()
            naive.eval()
            side_by_side(f"{title}: eval", candidates, baseline=ONCE, rounds=20, targets=targets)
        block.train()
        naive.train()
        steps = {name: lambda c=c: c().square().sum().backward() for name, c in candidates.items()}
        side_by_side(f"{title}: training step", steps, baseline=ONCE, rounds=10, targets=targets)


def pseudo_complex() -> None:
    layer, x = pseudo_complex_conv2d(16, 32, 3, padding=1, bias=False), torch.randn(4, 16, 2, 65, 63)
    forms = {
        "four convolutions": four_convolutions,
        "three (Gauss)": three_convolutions,
        "one, stacked": PseudoComplex.__call__,
    }
    for form in forms.values():
        torch.testing.assert_close(form(layer, x), layer(x), atol=1e-5, rtol=1e-5)
    side_by_side(
        "pseudo-complex 3×3 convolution, 16 to 32 channels, batch 4 of 65×63: training step",
        {name: lambda f=f: f(layer, x).square().sum().backward() for name, f in forms.items()},
        baseline="four convolutions",
        rounds=20,
    )


def whole() -> None:
    """How long a second of sound takes."""
    model: nn.Module = ComplexMaskAEC().eval()
    signals = torch.randn(2, 1, 160_000)
    with torch.no_grad():
        side_by_side(
            "10 s at 16 kHz through the full-size network (356,070 parameters)",
            {"whole": lambda: model(*signals), "in pieces of 5 s": lambda: cancel_echo(model, *signals, piece=80_000)},
            baseline="whole",
            rounds=2,
        )


def main() -> None:
    torch.manual_seed(0)
    dense()
    pseudo_complex()
    whole()


if __name__ == "__main__":
    main()
