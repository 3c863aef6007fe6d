"""Tests of ``netwright.models.generative.relative_ae``."""

import pytest
import torch
from torch import Tensor, nn

from netwright.analysis.stitching import stitch
from netwright.cost import count_params
from netwright.layers.relative import relative_projection
from netwright.models.generative.relative_ae import ConvAutoencoder, RelativeAE


def conv_and_norm(inn: int, out: int, kernel: int) -> int:
    return inn * out * kernel**2 + out + 2 * out


def test_sizes_of_the_authors_configuration_on_meta() -> None:
    """500 anchors of 28×28, four convolutions (maps 14, 7, 4, 2), layer norm: counted layer by layer."""
    encoder = sum(conv_and_norm(i, o, 3) for i, o in [(1, 32), (32, 64), (64, 128), (128, 256)])
    # a transposed kernel of 3 where the side was odd before it was halved: 2 to 4, 4 to 7, 7 to 14, 14 to 28
    shapes = [(256, 128, 4), (128, 64, 3), (64, 32, 4), (32, 32, 4)]
    decoder = sum(conv_and_norm(*shape) for shape in shapes) + 32 * 9 + 1
    with torch.device("meta"):
        model = RelativeAE(torch.empty(500, 1, 28, 28))
        plain = ConvAutoencoder((1, 28, 28))
        assert model(torch.empty(3, 1, 28, 28)).shape == (3, 1, 28, 28)
    assert count_params(model.encoder) == encoder == 388_800
    assert count_params(model.projection) == 2 * 500
    assert count_params(model) == encoder + 1000 + 500 * 1024 + 1024 + decoder
    assert count_params(plain) == encoder + 1024 * 500 + 500 + 500 * 1024 + 1024 + decoder


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 13, 6), (1, 1, 1)])
@pytest.mark.parametrize("latent", [None, 7])
def test_pictures_come_back_in_their_size(shape: tuple[int, int, int], latent: int | None) -> None:
    model = RelativeAE(torch.rand(5, *shape), (4, 6, 8), latent)
    pictures = model(torch.rand(2, *shape)).detach()
    assert pictures.shape == (2, *shape)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    assert latent is None or model.latents(torch.rand(2, *shape)).shape == (2, 7)


def test_layers_are_those_of_the_authors() -> None:
    model = RelativeAE(torch.rand(5, 1, 8, 8), (4, 6))
    assert [type(layer) for layer in model.encoder] == [
        nn.Conv2d, nn.BatchNorm2d, nn.GELU, nn.Conv2d, nn.BatchNorm2d, nn.Flatten,
    ]  # fmt: skip
    assert isinstance(model.decoder[-1], nn.Sigmoid)
    x = torch.rand(3, 1, 8, 8)
    model.eval()
    torch.testing.assert_close(model.encode(x), relative_projection(model.encoder(x), model.encoder(model.anchors)))


def test_stitched_models_of_different_latents_and_a_round_trip() -> None:
    anchors, x = torch.rand(12, 1, 8, 8), torch.rand(3, 1, 8, 8)
    a, b = RelativeAE(anchors, (4, 6), 9), RelativeAE(anchors, (4, 6), 5)
    assert stitch(a, b)(x).shape == x.shape
    again = RelativeAE(torch.zeros_like(anchors), (4, 6), 9)
    again.load_state_dict(a.state_dict())
    assert torch.equal(again.eval()(x), a.eval()(x))


def test_learns_and_keeps_types_under_autocast() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(40, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    model = RelativeAE(pictures[:20], (8,), similarity="euclidean", refresh_every=2, act=nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def error() -> Tensor:
        return (model(pictures) - pictures).square().mean()

    first = error().item()
    for _ in range(40):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < 0.2 * first
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"anchors must have shape \(anchors, channels, height, width\)"):
        RelativeAE(torch.rand(5, 8, 8))
    with pytest.raises(ValueError, match="number of anchors must be at least 1, got 0"):
        RelativeAE(torch.rand(0, 1, 8, 8))
    with pytest.raises(ValueError, match="number of hidden widths must be at least 1"):
        RelativeAE(torch.rand(5, 1, 8, 8), ())
    with pytest.raises(ValueError, match="latent must be at least 1, got 0"):
        ConvAutoencoder((1, 8, 8), (4,), 0)
