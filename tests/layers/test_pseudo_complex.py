"""Tests of ``netwright.layers.pseudo_complex``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck

from netwright.layers.multidilated import MultiDilatedConv2d
from netwright.layers.pseudo_complex import (
    Planewise,
    PseudoComplex,
    from_pairs,
    pair_product,
    planewise_batch_norm2d,
    pseudo_complex_conv2d,
    to_pairs,
)

DOUBLE, COMPLEX = torch.float64, torch.complex128

# what makes the real layer, shape of the complex input
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "conv1d": (partial(nn.Conv1d, 3, 5, 3, stride=2, padding=1), (2, 3, 9)),
    "conv2d": (partial(nn.Conv2d, 3, 5, (3, 2), dilation=2, padding=(2, 1)), (2, 3, 9, 8)),
    "groups": (partial(nn.Conv2d, 4, 6, 3, groups=2, bias=False, padding="same"), (2, 4, 6, 7)),
    "circular": (partial(nn.Conv2d, 2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 6, 7)),
    "conv3d": (partial(nn.Conv3d, 2, 3, 3), (1, 2, 4, 4, 5)),
    "transposed": (partial(nn.ConvTranspose2d, 3, 2, 2, stride=2), (2, 3, 4, 5)),
    "linear": (partial(nn.Linear, 6, 4), (7, 6)),
    "multidilated": (partial(MultiDilatedConv2d, [1, 2], 4), (2, 3, 8, 9)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def complex_like(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=COMPLEX)


@every_layer
def test_is_two_real_layers_and_linear_over_the_complex_numbers(
    make: Callable[..., nn.Module], shape: tuple[int, ...]
) -> None:
    layer = PseudoComplex(partial(make, dtype=DOUBLE))
    z = complex_like(*shape)
    R, I = layer.real, layer.imag
    expected = torch.complex(R(z.real) - I(z.imag), R(z.imag) + I(z.real))
    out = from_pairs(layer(to_pairs(z)))
    torch.testing.assert_close(out, expected)
    # multiplying by i inside is the same as outside; real layers side by side could not do that
    zero = from_pairs(layer(to_pairs(torch.zeros_like(z))))
    torch.testing.assert_close(from_pairs(layer(to_pairs(1j * z))) - zero, 1j * (out - zero))


def test_is_torchs_convolution_of_complex_numbers() -> None:
    layer = pseudo_complex_conv2d(3, 4, 3, padding=1, bias=False, dtype=DOUBLE)
    z, weight = complex_like(2, 3, 6, 7), torch.complex(layer.real.weight, layer.imag.weight)
    expected = torch.nn.functional.conv2d(z, weight, padding=1)
    torch.testing.assert_close(from_pairs(layer(to_pairs(z))), expected)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 3 * 4 * 9


def test_pairs_and_their_product() -> None:
    a, b = complex_like(2, 1, 4), complex_like(2, 3, 4)
    torch.testing.assert_close(from_pairs(pair_product(to_pairs(a), to_pairs(b))), a * b)


def test_planes_have_their_own_statistics_and_are_not_mixed() -> None:
    norm = planewise_batch_norm2d(3, dtype=DOUBLE)
    z = torch.complex(2 + 3 * torch.randn(8, 3, 5, 5, dtype=DOUBLE), 0.1 * torch.randn(8, 3, 5, 5, dtype=DOUBLE) - 1)
    out = norm(to_pairs(z))
    assert out.mean((0, 3, 4)).abs().max() < 1e-10
    torch.testing.assert_close(out.var((0, 3, 4), correction=0), torch.ones(3, 2, dtype=DOUBLE), atol=2e-3, rtol=0)
    changed = norm(to_pairs(torch.complex(z.real, 5 * z.imag + 7)))
    torch.testing.assert_close(changed[:, :, 0], out[:, :, 0])
    assert sum(p.numel() for p in norm.parameters()) == 12


def test_gradients_state_autocast_and_meta(tmp_path: Path) -> None:
    layer = pseudo_complex_conv2d(1, 2, 3, padding=1, dtype=DOUBLE)
    x = torch.randn(1, 1, 2, 4, 3, dtype=DOUBLE, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)
    assert gradcheck(lambda x, *p: torch.func.functional_call(layer, dict(zip(names, p, strict=True)), x), (x, *values))

    net = nn.Sequential(pseudo_complex_conv2d(2, 3, 3), planewise_batch_norm2d(3))
    pairs = torch.randn(4, 2, 2, 7, 8)
    net(pairs)
    save_model(net, str(tmp_path / "net.safetensors"))
    again = nn.Sequential(pseudo_complex_conv2d(2, 3, 3), planewise_batch_norm2d(3))
    load_model(again, str(tmp_path / "net.safetensors"))
    assert torch.equal(again.eval()(pairs), net.eval()(pairs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net[0](pairs)
    assert half.dtype == torch.bfloat16
    half.float().sum().backward()
    assert net[0].imag.weight.grad.dtype == torch.float32
    assert pseudo_complex_conv2d(2, 3, 3, device="meta")(pairs.to("meta")).shape == (4, 3, 2, 5, 6)


def test_what_is_refused() -> None:
    layer = pseudo_complex_conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"input must be real pairs .*to_pairs, got torch.complex64"):
        layer(torch.randn(1, 2, 5, 5, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"\(batch, channels, 2, ...\), got shape \(1, 4, 5, 5\)"):
        layer(torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match=r"\(batch, channels, 2, ...\)"):
        Planewise(nn.BatchNorm2d(4))(torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match=r"must be complex, got torch.float32"):
        to_pairs(torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"\(batch, channels, ...\), got shape \(4,\)"):
        to_pairs(torch.randn(4, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"\(batch, channels, 2, ...\), got shape \(2, 2\)"):
        from_pairs(torch.randn(2, 2))
    same = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"new layer in each call, got the same one twice"):
        PseudoComplex(lambda: same)
