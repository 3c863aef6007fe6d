"""Tests of ``netwright.models.vision.ms_mlp``."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.autograd import gradcheck

from netwright.cost import count_macs, count_params
from netwright.models.vision.ms_mlp import MSMLP, SIZES, STAGE_KERNELS, MixShiftBlock, Size, ms_mlp

DOUBLE = torch.float64


def small(**options: object) -> MSMLP:
    """Two stages on maps of 8×8 and 4×4."""
    options = {"kernels": STAGE_KERNELS[:2], "num_classes": 4, "image_size": 16, "patch_size": 2, **options}
    return MSMLP(10, (1, 2), **options)


@pytest.mark.parametrize(
    ("size", "parameters", "macs"),
    [("tiny", 28_656_232, 4.438e9), ("small", 50_303_752, 8.667e9), ("base", 88_696_792, 15.334e9)],
)
def test_published_sizes(size: Size, parameters: int, macs: float) -> None:
    with torch.device("meta"):
        model = ms_mlp(size)
        assert count_params(model) == parameters
        assert count_macs(model, torch.empty(1, 3, 224, 224)) == pytest.approx(macs, rel=1e-4)
    assert [block.mix.kernels for stage in model.stages for block in stage[:1]] == list(STAGE_KERNELS)
    assert [stage[0].mix.dim for stage in model.stages] == [SIZES[size][0] * 2**i for i in range(4)]


def test_pyramid_of_the_published_network() -> None:
    with torch.device("meta"):
        maps = MSMLP(depths=(1, 1, 1, 1)).features(torch.empty(1, 3, 224, 224))
    assert [tuple(one.shape) for one in maps] == [(1, 96, 56, 56), (1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7)]


def test_stochastic_depth_rises_linearly() -> None:
    with torch.device("meta"):
        model = ms_mlp("base")
    rates = torch.tensor([block.drop_path.rate for stage in model.stages for block in stage])
    torch.testing.assert_close(rates, torch.linspace(0, 0.5, 36))
    assert small(drop_path_rate=0.2).stages[1][1].drop_path.rate == pytest.approx(0.2)


def test_block_is_a_residual_around_mix_norm_mlp() -> None:
    block, x = MixShiftBlock(10, layer_scale=0.5), torch.randn(2, 10, 8, 8)
    mixed = block.mix(x)
    normed = (mixed - mixed.mean(1, keepdim=True)) / (mixed.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    up, gelu, down = block.mlp
    branch = down(gelu(up(normed.movedim(1, -1)))).movedim(-1, 1)
    torch.testing.assert_close(block(x), x + 0.5 * branch)


def test_fresh_blocks_are_nearly_the_identity() -> None:
    x = torch.randn(2, 10, 8, 8)
    torch.testing.assert_close(MixShiftBlock(10)(x), x, atol=1e-5, rtol=0)


def test_initial_weights() -> None:
    model = small(num_classes=400)
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.classifier.bias.any()
    assert not model.stages[0][0].mlp[0].bias.any()
    assert model.patches[0].projection.bias.any()
    torch.testing.assert_close(model.stages[0][0].scale.scale.detach(), torch.full((10,), 1e-6))


def test_classifier_sees_the_mean_of_the_last_map() -> None:
    model, x = small().eval(), torch.randn(3, 3, 16, 16)
    last = model.features(x)[-1]
    torch.testing.assert_close(model(x), model.classifier(model.norm(last.mean((2, 3)))))
    without = small(num_classes=0).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "classifier" not in k})
    torch.testing.assert_close(model.classifier(without(x)), model(x))


def test_pyramid_has_a_norm_for_each_stage_and_takes_other_sizes() -> None:
    plain, model = small(), small(pyramid=True)
    assert count_params(model) == count_params(plain) + 2 * (10 + 20)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing.missing_keys} == {"stage_norms"}
    with torch.no_grad():
        model.stage_norms[1].bias.fill_(3.0)
    x = torch.randn(2, 3, 32, 24)
    maps, raw = model.features(x), plain.features(x)
    assert [tuple(one.shape) for one in maps] == [(2, 10, 16, 12), (2, 20, 8, 6)]
    torch.testing.assert_close(maps[0].mean(1), torch.zeros(2, 16, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[1].mean(1), torch.full((2, 8, 6), 3.0))
    torch.testing.assert_close(maps[0].var(1, correction=0), torch.ones(2, 16, 12), atol=1e-3, rtol=0)
    assert not torch.allclose(maps[0], raw[0])
    sum(one.sum() for one in maps).backward()
    assert all(norm.weight.grad is not None for norm in model.stage_norms)


@torch.no_grad()
def test_eval_mode_is_training_mode_without_stochastic_depth() -> None:
    model, x = small(drop_path_rate=0.0, layer_scale=1.0), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.eval()(x), model.train()(x), atol=1e-5, rtol=1e-5)


def test_autocast_state_and_compilation(tmp_path: Path) -> None:
    model, x = small(layer_scale=1.0, drop_path_rate=0.0), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
    torch.testing.assert_close(half.float(), model(x), atol=0.1, rtol=0.1)
    half.float().square().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    save_model(model, str(tmp_path / "model.safetensors"))
    again = small(layer_scale=1.0)
    load_model(again, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(again.eval()(x), model.eval()(x))
    block = MixShiftBlock(3, (0, 1), (1, 3), layer_scale=1.0)
    maps = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(maps), block(maps))


def test_gradients_in_double_precision() -> None:
    block = MixShiftBlock(2, (0, 1), (1, 3), mlp_ratio=1.5, layer_scale=0.5).double()
    x = torch.randn(1, 2, 3, 4, dtype=DOUBLE, requires_grad=True)
    assert block.mlp[0].out_features == 3
    names, values = zip(*block.named_parameters(), strict=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(run, (x, *values))


def test_mix_shift_serves_before_attention() -> None:
    """The layer keeps the shape of the map, so it can stand before any other mixer, as in the paper's "+Swin"."""
    block = MixShiftBlock(10)
    attention = nn.TransformerEncoderLayer(10, 2, 20, batch_first=True)
    tokens = block.mix(torch.randn(2, 10, 4, 4)).flatten(2).transpose(1, 2)
    assert attention(tokens).shape == (2, 16, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ms_mlp(image_size=200), "height and width of the pictures must be divisible by 32, got 200×200"),
        (
            lambda: ms_mlp(image_size=(224, 230)),
            "pictures must be divisible by 32, got 224×230",
        ),
        (lambda: ms_mlp(image_size=64), "shifts up to 2 pixels need more than 2 in the map of the last stage, got 2×2"),
        (lambda: small()(torch.zeros(1, 3, 16, 18)), "height and width of the pictures must be divisible by 4"),
        (lambda: small().features(torch.zeros(1, 3, 8, 16)), "need more than 2 in the map of the last stage, got 2×4"),
        (lambda: small()(torch.zeros(3, 16, 16)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: small(kernels=STAGE_KERNELS), "kernels must be given for each of the 2 stages, got 4 of them"),
        (lambda: small(kernels=((1, 1, 3, 5), (1, 3, 3, 5))), r"kernels must be as many as shifts \(5\), got 4"),
        (lambda: small(kernels=((1, 1, 3, 5, 6),) * 2), "kernels must be odd and positive"),
        (
            lambda: MSMLP(4, (1,), kernels=STAGE_KERNELS[:1], image_size=32),
            "dim for 5 chunks must be at least 5",
        ),
        (lambda: MSMLP(depths=()), "number of stages must be at least 1"),
        (lambda: small(num_classes=-1), "num_classes must be at least 0"),
        (lambda: small(patch_size=0), "patch_size must be at least 1"),
        (lambda: small(drop_path_rate=1.0), r"rate must be in \[0, 1\)"),
        (lambda: MixShiftBlock(10, mlp_ratio=0), "mlp_ratio must be positive"),
        (lambda: ms_mlp("tiney"), "unknown size 'tiney'; did you mean 'tiny'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
