"""CMuSeNet against its real-valued twin of the same width, and the network in real pairs against the complex one."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import side_by_side
from netwright.data.radio import WidebandIQ
from netwright.layers.complex import ComplexConv2d
from netwright.models.signals.cmusenet import CMuSeNet, RVMuSeNet
from netwright.models.signals.real_pairs import to_real_pairs
from netwright.training.losses.complex_focal import ComplexFocalLoss


def step(model: CMuSeNet | RVMuSeNet, iq: Tensor, mask: Tensor) -> Callable[[], None]:
    loss = ComplexFocalLoss(logits=True)
    pictures = model.pictures(iq)

    def run() -> None:
        model.zero_grad()
        loss(model.network(pictures), mask).backward()

    return run


def infer(model: torch.nn.Module, input: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(input)

    return run


def native(conv: ComplexConv2d, input: Tensor) -> Callable[[], Tensor]:
    weight = conv.weight.detach()

    def run() -> Tensor:
        with torch.no_grad():
            return torch.nn.functional.conv2d(input, weight, padding=1)

    return run


def main() -> None:
    for fft_size, width, batch in ((1024, 8, 64), (4096, 16, 16), (16384, 64, 1)):
        found = WidebandIQ(fft_size=fft_size).draw(batch, generator=torch.Generator().manual_seed(0))
        networks = {"real twin": RVMuSeNet(fft_size, width=width), "complex": CMuSeNet(fft_size, width=width)}
        side_by_side(
            f"{fft_size} bins, {width} channels, batch {batch}: training step",
            {name: step(network, found.iq, found.mask) for name, network in networks.items()},
            baseline="real twin",
            rounds=10,
            targets={"complex": 3.3},
        )
    model, iq = networks["complex"].eval(), found.iq
    assert isinstance(model, CMuSeNet)
    pairs = to_real_pairs(model)
    side_by_side(
        "16384 bins, 64 channels, batch 1: eval",
        {"complex": infer(model, iq), "in real pairs": infer(pairs, torch.stack([iq.real, iq.imag], 1))},
        baseline="complex",
        rounds=10,
    )
    conv, maps = ComplexConv2d(64, 64, 3, padding=1, bias=False), torch.randn(4, 64, 32, 32, dtype=torch.complex64)
    side_by_side(
        "3×3 complex convolution, 64 channels, 32×32, batch 4: forward",
        {"torch's complex64": native(conv, maps), "three real ones (Gauss)": infer(conv, maps)},
        baseline="torch's complex64",
        targets={"three real ones (Gauss)": 1.0},
    )


if __name__ == "__main__":
    main()
