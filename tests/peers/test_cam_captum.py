"""Our class activation maps against captum's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from netwright.explain.cam import grad_cam, guided_grad_cam, neuron_importance
from netwright.explain.guided import guided_backprop

attr = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["plain", "strided"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    stride = 1 if request.param == "plain" else 2
    body = nn.Conv2d(3, 8, 3, stride=stride), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)).double().eval()


X = torch.randn(3, 3, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 4, 2])


@pytest.mark.parametrize("layer", ["1", "3"])
def test_grad_cam(model: nn.Module, layer: str) -> None:
    theirs = attr.LayerGradCam(model, dict(model.named_modules())[layer])
    expected = theirs.attribute(X, target=TARGET, relu_attributions=True)[:, 0]
    # captum sums over the places where the paper's α takes the mean, or the mean where it sums, by version
    found = grad_cam(model, X, layer, TARGET).raw
    ratio = (expected.sum() / found.sum()).detach()
    places = found.shape[1] * found.shape[2]
    assert min(abs(ratio - 1), abs(ratio - places)) < 1e-9
    torch.testing.assert_close(found * ratio, expected.detach(), rtol=1e-9, atol=1e-12)


def test_without_relu(model: nn.Module) -> None:
    theirs = attr.LayerGradCam(model, model[3]).attribute(X, target=TARGET)[:, 0].detach()
    found = grad_cam(model, X, "3", TARGET, relu=False).raw
    torch.testing.assert_close(found / found.abs().max(), theirs / theirs.abs().max(), rtol=1e-9, atol=1e-12)


def test_maps_at_the_size_of_the_picture(model: nn.Module) -> None:
    theirs = attr.LayerGradCam(model, model[3]).attribute(X, target=TARGET, relu_attributions=True).detach()
    theirs = attr.LayerAttribution.interpolate(theirs, (20, 16), "bilinear")[:, 0]
    found = grad_cam(model, X, "3", TARGET).map
    torch.testing.assert_close(found / found.max(), theirs / theirs.max(), rtol=1e-5, atol=1e-5)


def test_guided_backprop(model: nn.Module) -> None:
    expected = attr.GuidedBackprop(model).attribute(X.clone().requires_grad_(), target=TARGET)
    torch.testing.assert_close(guided_backprop(model, X, TARGET), expected.detach(), rtol=1e-9, atol=1e-12)


def test_guided_grad_cam(model: nn.Module) -> None:
    expected = attr.GuidedGradCam(model, model[3]).attribute(
        X.clone().requires_grad_(), target=TARGET, interpolate_mode="bilinear"
    )
    found = guided_grad_cam(model, X, "3", TARGET)
    expected = expected.detach()
    torch.testing.assert_close(found / found.abs().max(), expected / expected.abs().max(), rtol=1e-5, atol=1e-5)


def test_importance_of_units(model: nn.Module) -> None:
    gradients = attr.LayerActivation(model, model[3]).attribute(X)
    head = nn.Sequential(*model[4:])
    gradients = torch.autograd.grad(head(gradients.requires_grad_()).gather(1, TARGET[:, None]).sum(), gradients)[0]
    expected = functional.adaptive_avg_pool2d(gradients, 1)[:, :, 0, 0]
    torch.testing.assert_close(neuron_importance(model, X, "3", TARGET), expected, rtol=1e-9, atol=1e-12)
