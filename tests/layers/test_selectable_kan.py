"""Tests of ``netwright.layers.selectable_kan``."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
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
from netwright.layers.kan import KANLayer
from netwright.layers.selectable_kan import (
    POOL,
    SELECT,
    SKAN,
    SConvKAN2d,
    Selectable,
    SKANLayer,
    fit_grids_,
    to_skan,
)
from netwright.surgery import swapped

DOUBLE = torch.float64
SIZES = {"bspline": 9, "rbf": 8, "chebyshev": 8, "fourier": 8, "wavelet": 8, "silu": 1}
PHASES = ("full", "selective", "pruned")
MIXED = ("bspline", "rbf", "wavelet", "silu")  # all kinds of what a family can have: knots, a norm, parameters, nothing


def decided(layer: Selectable, phase: str = "selective", *, generator: torch.Generator | None = None) -> Selectable:
    """The layer in a phase, with random selection weights."""
    if layer.selection is not None:
        layer.selection.data.normal_(generator=generator)
    if phase != "full":
        layer.select_()
    if phase == "pruned":
        layer.prune_()
    return layer


def mixed_weights(layer: Selectable) -> dict[str, Tensor]:
    """The coefficients of each family times its α, as ``(out, in, K, *kernel)``."""
    if layer.phase == "pruned":
        return {name: layer._dense(layer.family(name)) for name in layer.families}
    alphas = layer.alphas()
    if layer.select != "edge":
        alphas = alphas.expand(layer._shape[0], -1).unsqueeze(1)
    return {
        name: torch.einsum("oi,oi...->oi...", alphas[..., k].expand(layer._shape[:2]), layer.family(name).weight)
        for k, name in enumerate(layer.pool)
    }


def linear(select: str = "node", **options: object) -> SKANLayer:
    return SKANLayer(3, 8, MIXED, 6, select=select, **options)


def conv(select: str = "node", groups: int = 2, **options: object) -> SConvKAN2d:
    return SConvKAN2d(4, 8, (3, 2), 2, (1, 0), (1, 2), groups, True, pool=MIXED, num_basis=5, select=select, **options)


MAKERS: dict[str, tuple[Callable[..., Selectable], tuple[int, ...]]] = {
    "linear": (linear, (5, 3)),
    "conv": (lambda *args, **options: conv(*args, groups=1, **options), (2, 4, 6, 7)),
    "groups": (conv, (2, 4, 6, 7)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), MAKERS.values(), ids=MAKERS)
every_select = pytest.mark.parametrize("select", SELECT)


def test_with_one_family_it_is_a_plain_kan_layer() -> None:
    plain, layer = KANLayer(4, 3), SKANLayer(4, 3, ("bspline",))
    assert layer.phase == "pruned"
    assert count_params(layer) == count_params(plain) == 4 * 3 * 9
    family = layer.family("bspline")
    family.basis.load_state_dict(plain.basis.state_dict())
    with torch.no_grad():
        family.weight.copy_(plain.weight)
    x = torch.randn(20, 4)
    assert torch.equal(layer(x), plain(x))


@every_select
@pytest.mark.parametrize("mixing", ["softmax", "free"])
def test_output_is_the_sum_of_all_families_times_alpha(select: str, mixing: str) -> None:
    layer = SKANLayer(3, 4, bias=True, select=select, mixing=mixing, dtype=DOUBLE)
    decided(layer, "full")
    nn.init.normal_(layer.bias)
    x = torch.randn(6, 3, dtype=DOUBLE)
    alphas = layer.selection.softmax(-1) if mixing == "softmax" else layer.selection
    alphas = {"layer": alphas, "node": alphas[:, None], "edge": alphas}[select].expand(4, 3, 6)
    expected = layer.bias + sum(
        torch.einsum("oi,oib,nib->no", alphas[..., k], layer.family(name).weight, layer.family(name).basis(x))
        for k, name in enumerate(POOL)
    )
    torch.testing.assert_close(layer(x), expected)


@every_select
def test_selection_keeps_what_the_strongest_contributed(select: str) -> None:
    layer = decided(linear(select), "full")
    x, before = torch.randn(5, 3), layer.alphas().detach()
    layer.select_()
    strongest = before.argmax(-1, keepdim=True)
    kept = torch.zeros_like(before).scatter(-1, strongest, before.gather(-1, strongest))
    assert torch.equal(layer.alphas(), kept)
    assert layer.choices() == Counter(MIXED[k] for k in strongest.flatten())
    layer(x).sum().backward()
    for k, name in enumerate(MIXED):
        weight = layer.family(name).weight
        alive = layer.alive[..., k]
        moved = torch.zeros_like(weight) if weight.grad is None else weight.grad
        units = {"layer": moved, "node": moved, "edge": moved.flatten(0, 1)}[select]
        for unit, lives in zip([units] if select == "layer" else units, alive.flatten(), strict=True):
            assert bool(unit.any()) == bool(lives)


@every_layer
@every_select
def test_pruning_changes_nothing_but_the_size(
    make: Callable[..., Selectable], shape: tuple[int, ...], select: str
) -> None:
    layer = decided(make(select, dtype=DOUBLE))
    x = torch.randn(shape, dtype=DOUBLE)
    before, choices, single = layer(x), layer.choices(), layer.family("bspline").weight[:1].numel()
    layer.prune_()
    torch.testing.assert_close(layer(x), before)
    assert layer.choices() == choices
    assert set(layer.families) == set(choices)
    units = sum(choices.values())
    for name, family in layer.families.items():
        edges = layer._shape[0] * layer._shape[1] * choices[name] // units
        kernel = single // (layer._shape[1] * layer._options["num_basis"] + layer._shape[1])
        assert family.weight.numel() == edges * family.basis.size * kernel


@given(seed=st.integers(0, 1000))
def test_pruning_changes_nothing_whatever_is_selected(seed: int) -> None:
    layer = decided(SKANLayer(3, 5, num_basis=4, dtype=DOUBLE), generator=torch.Generator().manual_seed(seed))
    x = torch.randn(7, 3, dtype=DOUBLE)
    before = layer(x)
    layer.prune_()
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("family", POOL)
def test_published_counts(family: str) -> None:
    """All families: in · out · Σ n_k, selection weights, extras; one family left: in · out · n_k and its extras."""
    extras = {"rbf": 2 * 784, "wavelet": 2 * 8 * 784}
    for select, units in (("layer", 1), ("node", 64), ("edge", 784 * 64)):
        layer = SKANLayer(784, 64, select=select, device="meta")
        assert count_params(layer) == 784 * 64 * sum(SIZES.values()) + 6 * units + sum(extras.values())
    layer = SKANLayer(40, 30)
    with torch.no_grad():
        layer.selection[:, POOL.index(family)] = 1
    layer.select_()
    layer.prune_()
    small = {"rbf": 2 * 40, "wavelet": 2 * 8 * 40}
    assert count_params(layer) == 40 * 30 * SIZES[family] + small.get(family, 0)
    with torch.device("meta"):
        picture = SConvKAN2d(64, 128, 3, groups=4, pool=(family,))
        assert picture(torch.empty(2, 64, 8, 8)).shape == (2, 128, 6, 6)
    conv_extras = {"rbf": 2 * 64, "wavelet": 2 * 8 * 64}.get(family, 0)
    assert count_params(picture) == 128 * 16 * 9 * SIZES[family] + conv_extras


@pytest.mark.parametrize("phase", PHASES)
@every_select
def test_convolution_is_the_layer_on_patches(select: str, phase: str) -> None:
    layer = SConvKAN2d(
        2, 5, (3, 2), (1, 2), (1, 0), (2, 1), pool=("bspline", "fourier"), select=select, dtype=DOUBLE, bias=True
    )
    decided(layer, phase)
    x = torch.randn(3, 2, 7, 6, dtype=DOUBLE)
    patches = functional.unfold(x, (3, 2), (2, 1), (1, 0), (1, 2)).mT  # (3, places, channel · kernel)
    expected = torch.zeros(3, patches.shape[1], 5, dtype=DOUBLE) + layer.bias
    for name, weight in mixed_weights(layer).items():
        basis = copy.deepcopy(layer.family(name).basis)
        basis.in_features = 12
        if hasattr(basis, "knots"):
            basis.knots = basis.knots.repeat_interleave(6, 1)
        # (out, in, K, kernel) as coefficients of the inputs of a patch
        flat = weight.flatten(3).transpose(2, 3).flatten(1, 2)
        expected += torch.einsum("npib,oib->npo", basis(patches), flat)
    torch.testing.assert_close(layer(x).flatten(2).mT, expected)


def test_groups_are_convolutions_of_their_own() -> None:
    layer = SConvKAN2d(4, 6, 3, groups=2, pool=("chebyshev", "wavelet"), dtype=DOUBLE)
    halves = [SConvKAN2d(2, 3, 3, pool=("chebyshev", "wavelet"), dtype=DOUBLE) for _ in range(2)]
    for g, half in enumerate(halves):
        for name in ("chebyshev", "wavelet"):
            half.family(name).weight.data = layer.family(name).weight.data[3 * g : 3 * g + 3]
    x = torch.randn(2, 4, 6, 6, dtype=DOUBLE)
    expected = torch.cat([half(part) for half, part in zip(halves, x.chunk(2, 1), strict=True)], 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_same_padding_in_all_modes(mode: str) -> None:
    torch_conv = nn.Conv2d(2, 3, (3, 4), padding="same", padding_mode=mode)
    layer = SConvKAN2d.like(torch_conv, pool=("silu", "fourier"))
    decided(layer, "full")
    x = torch.randn(2, 2, 6, 7)
    padded = functional.pad(x, (1, 2, 1, 1), mode="constant" if mode == "zeros" else mode)
    images = torch.cat(
        [functional.silu(padded)[..., None], layer.family("fourier").basis(padded.movedim(1, -1)).movedim(-2, 1)], -1
    )
    kernels = torch.cat(list(mixed_weights(layer).values()), 2)
    expected = sum(functional.conv2d(images[..., b], kernels[:, :, b]) for b in range(9)) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


@every_layer
@pytest.mark.parametrize("phase", PHASES)
def test_shapes_types_and_gradients(make: Callable[..., Selectable], shape: tuple[int, ...], phase: str) -> None:
    layer, x = decided(make(dtype=DOUBLE), phase), torch.randn(shape, dtype=DOUBLE)
    y = layer(x)
    torch.testing.assert_close(layer(x[0]), y[0])  # without a batch dimension
    assert layer(x[:0]).shape == (0, *y.shape[1:])
    y.square().sum().backward()
    used = [p for name in layer._active for p in layer.family(name).parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in used)
    layer.float()
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), y, atol=0.1, rtol=0.1)
    half.float().sum().backward()
    assert {p.grad.dtype for p in used if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mixing", ["softmax", "free"])
def test_derivatives(phase: str, mixing: str) -> None:
    layer = decided(SConvKAN2d(2, 3, 2, pool=MIXED, num_basis=4, mixing=mixing, dtype=DOUBLE), phase)
    parameters = dict(layer.named_parameters())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    x = torch.randn(1, 2, 3, 3, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(function, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("phase", PHASES)
def test_compiles_as_one_graph(phase: str) -> None:
    layer, x = decided(SKANLayer(3, 8, ("chebyshev", "fourier", "silu"), 4), phase), torch.randn(4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@every_layer
@every_select
def test_the_phase_is_saved_and_loaded(
    make: Callable[..., Selectable], shape: tuple[int, ...], select: str, tmp_path: Path
) -> None:
    x = torch.randn(shape)
    saved = [decided(make(select), phase) for phase in PHASES]
    saved[-1].update_grid(x) if "bspline" in saved[-1].families else None
    for layer, start in itertools.product(saved, PHASES):  # from every phase into every other
        again = nn.Sequential(decided(make(select), start))
        save_model(nn.Sequential(layer), str(tmp_path / "layer.safetensors"))
        load_model(again, str(tmp_path / "layer.safetensors"))
        assert again[0].phase == layer.phase
        assert again[0].choices() == layer.choices()
        torch.testing.assert_close(again(x), layer(x))
        assert {name: p.shape for name, p in again[0].named_parameters()} == {
            name: p.shape for name, p in layer.named_parameters()
        }
    again = make(select)
    again.load_state_dict(saved[1].state_dict(), assign=True)
    assert torch.equal(again(x), saved[1](x))
    torch.testing.assert_close(copy.deepcopy(saved[2])(x), saved[2](x))


@every_layer
@pytest.mark.parametrize("phase", PHASES)
@every_select
def test_grids_move_and_functions_stay(
    make: Callable[..., Selectable], shape: tuple[int, ...], phase: str, select: str
) -> None:
    layer = make(select, dtype=DOUBLE)
    layer.selection.data[..., 0] = 1.0
    if select != "layer":
        layer.selection.data[1, ..., 1] = 2.0
    for step in (layer.select_, layer.prune_)[: PHASES.index(phase)]:
        step()
    x = 0.3 * torch.rand(20, *shape[1:], dtype=DOUBLE) + 0.1
    before, knots = layer(x), layer.family("bspline").basis.knots.clone()
    layer.update_grid(x)
    assert not torch.allclose(layer.family("bspline").basis.knots, knots)
    torch.testing.assert_close(layer(x), before, atol=0.02, rtol=0.02)


def test_like_keeps_bias_geometry_type_and_what_is_frozen() -> None:
    torch_conv = nn.Conv2d(4, 6, (3, 2), 2, (1, 0), 2, 2, padding_mode="circular", dtype=DOUBLE)
    torch_conv.weight.requires_grad_(False)
    layer = SConvKAN2d.like(torch_conv, pool=MIXED, select="edge")
    x = torch.randn(2, 4, 9, 8, dtype=DOUBLE)
    assert layer(x).shape == torch_conv(x).shape
    assert torch.equal(layer.bias, torch_conv.bias)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"bias"}
    assert SKANLayer.like(nn.Linear(3, 2, bias=False)).bias is None
    assert SKANLayer.like(nn.Linear(3, 2)).select == "node"


def test_network() -> None:
    model = SKAN([2, 5, 1], pool=("bspline", "rbf"), num_basis=5, bias=True)
    assert model(torch.rand(3, 4, 2)).shape == (3, 4, 1)
    assert count_params(model) == 15 * (6 + 5) + 2 * 6 + 6 + 2 * 5
    assert type(model[:1]) is nn.Sequential


def test_converter_leaves_the_classifier_and_torchs_own_blocks() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.ReLU(), nn.Linear(4, 2)
    )
    options = {"pool": ("silu", "fourier"), "num_basis": 2}
    assert swapped(to_skan(model, **options)) == ("2",)
    new = to_skan(model, convs="yes", **options)
    assert swapped(new) == ("0", "2")
    assert type(new[0]) is SConvKAN2d
    assert swapped(to_skan(nn.Sequential(*model[:2], model[5]), **options)) == ("0",)
    assert swapped(to_skan(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)), **options)) == ("0",)
    with pytest.raises(ValueError, match="found no linear layer before the last one to replace"):
        to_skan(nn.Sequential(*model[:2], model[5]), convs="no", **options)
    with pytest.raises(ValueError, match="found no linear layer or 2-D convolution before the last one to replace"):
        to_skan(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="unknown convs 'maybe'"):
        to_skan(model, convs="maybe")


def test_grids_are_fitted_to_what_layers_get() -> None:
    model = nn.Sequential(SKANLayer(3, 4), nn.Dropout(0.9), SKANLayer(4, 2, ("rbf",)), SKANLayer(2, 2)).train()
    x = 10 + torch.rand(50, 3)
    assert fit_grids_(model, x) is model
    assert model[0].training
    with torch.no_grad():
        seen = model[:3].eval()(x)
    for layer, inputs in ((model[0], x), (model[3], seen)):
        grid = layer.family("bspline").basis.grid
        torch.testing.assert_close(grid.mean(0), inputs.mean(0), atol=0.2, rtol=0.1)
        assert (grid[0] <= inputs.amin(0)).all()
        assert (grid[-1] >= inputs.amax(0)).all()
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SKANLayer(2, 2, ()), "pool must have one family or more of bspline, rbf, .*, got none"),
        (lambda: SKANLayer(2, 2, ("bspline", "furier")), r"unknown family 'furier'; did you mean 'fourier'\?"),
        (lambda: SKANLayer(2, 2, ("rbf", "rbf")), "pool must name each family once, got rbf, rbf"),
        (lambda: SKANLayer(2, 2, grid_range=(1.0, -1.0)), r"grid_range must be increasing and finite"),
        (lambda: SKANLayer(2, 2, num_basis=3), r"num_basis must be at least order \+ 1 = 4, got 3"),
        (lambda: SKANLayer(2, 2, select="nodes"), r"unknown select 'nodes'; did you mean 'node'\?"),
        (lambda: SKANLayer(2, 2, mixing="hard"), "unknown mixing 'hard'"),
        (lambda: SKANLayer(2, 0), "number of outputs must be at least 1, got 0"),
        (lambda: SKANLayer(2, 2)(torch.randn(3, 4)), "dimension -1 of input must have size 2"),
        (lambda: SKANLayer(2, 2).prune_(), "prune_ needs a layer in phase 'selective', got one in phase 'full'"),
        (lambda: decided(SKANLayer(2, 2)).select_(), "select_ needs a layer in phase 'full', .* 'selective'"),
        (lambda: decided(SKANLayer(2, 2), "pruned").prune_(), "prune_ needs a layer .*, got one in phase 'pruned'"),
        (lambda: SKANLayer(2, 2, ("rbf",)).alphas(), "alphas needs a layer in phase .*, got phase 'pruned'"),
        (
            lambda: SKANLayer(2, 2, ("rbf", "silu")).update_grid(torch.randn(5, 2)),
            "needs a layer with family 'bspline'",
        ),
        (lambda: SKAN([3]), "number of widths must be at least 2, got 1"),
        (lambda: SConvKAN2d(3, 4, 3, groups=2), "in_channels must be divisible by groups = 2, got 3"),
        (lambda: SConvKAN2d(4, 3, 3, groups=2), "out_channels must be divisible by groups = 2, got 3"),
        (lambda: SConvKAN2d(4, 3, 3, padding_mode="zero"), "unknown padding_mode 'zero'"),
        (lambda: SConvKAN2d(4, 3, 3)(torch.randn(4, 5)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: SConvKAN2d(4, 3, 3)(torch.randn(1, 3, 5, 5)), "dimension -3 of input must have size 4"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
