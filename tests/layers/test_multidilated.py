"""Tests of ``netwright.layers.multidilated``."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from netwright.cost import count_params
from netwright.layers.multidilated import D2Block, D3Block, MultiDilatedConv2d
from netwright.layers.pseudo_complex import planewise_batch_norm2d, pseudo_complex_conv2d

DOUBLE = torch.float64
PSEUDO = {"conv": pseudo_complex_conv2d, "norm": planewise_batch_norm2d}


def by_definition(block: D2Block, input: Tensor) -> Tensor:
    """Every layer convolves every earlier one: L(L+1)/2 convolutions."""
    sources, outputs, first = [input], [], 0
    for layer, growth in enumerate(block.growth):
        total = torch.zeros(())
        for i, source in enumerate(sources):
            before = first - sum(block.growth[:i])
            weight = block.convs[i].weight[before : before + growth]
            d = block.dilations[i]
            pad = [d * (side // 2) for side in block.kernel_size]
            active = block.acts[i](block.norms[i](source))
            total = total + functional.conv2d(active, weight, padding=pad, dilation=d)
        outputs.append(total)
        sources.append(total)
        first += growth
        assert len(sources) == layer + 2
    return torch.cat(outputs[-block.out_layers :], 1)


@given(
    growth=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    in_channels=st.integers(1, 4),
    one_dilation=st.booleans(),
    data=st.data(),
)
def test_each_source_convolved_once_is_the_dense_block(
    growth: list[int], in_channels: int, one_dilation: bool, data: st.DataObject
) -> None:
    depth = len(growth)
    block = D2Block(
        in_channels,
        growth,
        depth,
        dilations=[1] * depth if one_dilation else None,
        out_layers=data.draw(st.integers(1, depth)),
        dtype=DOUBLE,
    )
    x = torch.randn(2, in_channels, 7, 9, dtype=DOUBLE)
    torch.testing.assert_close(block(x), by_definition(block, x))
    assert block(x).shape[1] == block.out_channels


def test_dilation_belongs_to_the_source() -> None:
    groups, dilations = [2, 3, 1], [4, 1, 2]
    layer = MultiDilatedConv2d(groups, 5, (3, 5), dilations, dtype=DOUBLE)
    x = torch.randn(2, 6, 11, 12, dtype=DOUBLE)
    expected = layer.bias[None, :, None, None] + sum(
        functional.conv2d(source, weight, padding=(d, 2 * d), dilation=d)
        for source, weight, d in zip(x.split(groups, 1), layer.weight.split(groups, 1), dilations, strict=True)
    )
    torch.testing.assert_close(layer(x), expected)
    assert MultiDilatedConv2d([1, 1, 1], 2).dilations == (1, 2, 4)


def reach(block: nn.Module, size: int) -> Tensor:
    """Which inputs along the first axis the middle output depends on, holes included."""
    x = torch.zeros(1, 1, size, 1, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[:, -1, size // 2].sum(), x)
    return gradient[0, 0, :, 0] != 0


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_receptive_field_has_no_blind_spots(depth: int) -> None:
    """1 + 2 (2^L - 1) bins, all of them; growing dilations of the *layer* would leave holes from the input."""
    plain = {"norm": lambda channels, **_: nn.Identity(), "act": nn.Identity, "dtype": DOUBLE}
    block = D2Block(1, 2, depth, out_layers=1, **plain)
    for conv in block.convs:
        nn.init.uniform_(conv.weight, 0.5, 1.0)
    seen = reach(block, 41)
    radius = 2**depth - 1
    assert seen.tolist() == [abs(i - 20) <= radius for i in range(41)]
    last = functional.conv2d(torch.eye(41)[20].view(1, 1, 41, 1), torch.ones(1, 1, 3, 1), dilation=4, padding=(4, 0))
    assert int((last != 0).sum()) == 3, "a single layer of dilation 4 sees three bins of nine"
    dense = D2Block(1, 2, depth, dilations=[1] * depth, out_layers=1, **plain)
    for conv in dense.convs:
        nn.init.uniform_(conv.weight, 0.5, 1.0)
    assert int(reach(dense, 41).sum()) == 1 + 2 * depth


@pytest.mark.parametrize(("in_channels", "growth"), [(3, [4, 4, 4, 4]), (16, [2, 5, 3]), (1, [7])])
def test_counts(in_channels: int, growth: list[int]) -> None:
    """The card's formula without bias, twice that for pseudo-complex; on meta."""
    sources = [in_channels, *growth[:-1]]
    expected = 9 * sum(c * sum(growth[i:]) for i, c in enumerate(sources))
    for factor, kind in ((1, {}), (2, PSEUDO)):
        block = D2Block(in_channels, growth, len(growth), device="meta", **kind)
        assert sum(count_params(conv) for conv in block.convs) == factor * expected


def test_d3_block_is_densely_connected_and_compressed() -> None:
    block = D3Block(3, 4, 3, num_d2=2, compression=0.25, dtype=DOUBLE)
    assert block.out_channels == 3 + 3 + 3
    assert [b[0].convs[0].in_channels for b in block.blocks] == [3, 6]
    x = torch.randn(2, 3, 9, 8, dtype=DOUBLE)
    first = block.blocks[0](x)
    second = block.blocks[1](torch.cat([x, first], 1))
    torch.testing.assert_close(block(x), torch.cat([x, first, second], 1))


@pytest.mark.parametrize("kind", [{}, PSEUDO], ids=["real", "pseudo-complex"])
def test_gradients_state_autocast_and_meta(kind: dict[str, object], tmp_path: Path) -> None:
    planes = (2,) if kind else ()
    make = partial(D3Block, 2, 2, 2, num_d2=2, **kind)
    block = make(dtype=DOUBLE).eval()
    x = torch.randn(1, 2, *planes, 3, 4, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(block, (x,), fast_mode=True)
    block = make(act=nn.PReLU).train()
    x = torch.randn(2, 2, *planes, 8, 9)
    block(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    save_model(block, str(tmp_path / "block.safetensors"))
    again = make(act=nn.PReLU)
    load_model(again, str(tmp_path / "block.safetensors"))
    assert torch.equal(again.eval()(x), block.eval()(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = block(x)
    torch.testing.assert_close(half.float(), block(x), atol=0.1, rtol=0.1)
    assert make(device="meta")(x.to("meta")).shape == block(x).shape


def test_compiles_as_one_graph() -> None:
    block, x = D2Block(2, 2, 2, **PSEUDO), torch.randn(1, 2, 2, 5, 6)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), block(x))


def test_gradients_of_the_multidilated_convolution() -> None:
    layer = MultiDilatedConv2d([1, 2], 2, dtype=DOUBLE)
    x = torch.randn(1, 3, 4, 5, dtype=DOUBLE, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)
    assert gradcheck(lambda x, *p: torch.func.functional_call(layer, dict(zip(names, p, strict=True)), x), (x, *values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: D2Block(3, [4, 4], 3), r"growth must be a number or as many as there are layers \(3\), got \[4, 4\]"),
        (lambda: D3Block(3, [4] * 4, 3, 1), r"growth must be .* \(3\), got \[4, 4, 4, 4\]"),
        (lambda: D2Block(3, 4, 3, dilations=[1, 2]), r"dilations must be as many as layers \(3\), got \[1, 2\]"),
        (lambda: MultiDilatedConv2d([1, 2], 3, dilations=[1]), r"dilations must be as many as in_groups \(2\)"),
        (lambda: MultiDilatedConv2d([], 3), r"number of groups must be at least 1, got 0"),
        (lambda: MultiDilatedConv2d([1, 0], 3), r"smallest group must be at least 1, got 0"),
        (lambda: D2Block(3, 4, 3, kernel_size=(3, 4)), r"kernel_size must be odd.*got \(3, 4\)"),
        (lambda: D2Block(3, 4, 0), r"depth must be at least 1"),
        (lambda: D2Block(3, 0, 2), r"smallest growth must be at least 1, got 0"),
        (lambda: D2Block(3, 4, 2, dilations=[0, 1]), r"smallest dilation must be at least 1, got 0"),
        (lambda: D2Block(3, 4, 2, out_layers=3), r"out_layers must be in \[1, 2\], got 3"),
        (lambda: D3Block(3, 4, 2, 0), r"num_d2 must be at least 1"),
        (lambda: D3Block(3, 4, 2, 1, compression=0.0), r"compression must be in \(0, 1\], got 0.0"),
    ],
)
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("block", [MultiDilatedConv2d([1, 1], 2), D2Block(2, 2, 2), D3Block(2, 2, 2, 1)])
def test_complex_input_to_a_real_block_is_refused(block: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"input must be real; complex channels go in as pairs.*got torch.complex64"):
        block(torch.randn(1, 2, 5, 5, dtype=torch.complex64))
    if isinstance(block, MultiDilatedConv2d):
        with pytest.raises(ValueError, match=r"dimension 1 of input must have size 2, got shape \(1, 3, 5, 5\)"):
            block(torch.randn(1, 3, 5, 5))
