"""Our maps against those of the library of Gildenblat."""

import pytest
import torch
from torch import Tensor, nn

from netwright.explain.cam import grad_cam, normalise
from netwright.explain.eigen_cam import eigen_cam

reason = "pytorch-grad-cam is not installed, or torchvision is not"
theirs = pytest.importorskip("pytorch_grad_cam", reason=reason, exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(3, 3, 20, 16, generator=torch.Generator().manual_seed(1))
CLASSES = [0, 4, 2]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)).eval()


def large(raw: Tensor) -> Tensor:
    """At the size of the picture, from 0 to 1."""
    return normalise(nn.functional.interpolate(raw[:, None].float(), X.shape[2:], mode="bilinear")[:, 0])


@pytest.mark.parametrize("layer", [1, 3])
def test_grad_cam(model: nn.Sequential, layer: int) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(number) for number in CLASSES]
    with theirs.GradCAM(model=model, target_layers=[model[layer]]) as cam:
        expected = torch.from_numpy(cam(input_tensor=X.clone(), targets=targets))
    found = grad_cam(model, X, str(layer), CLASSES)
    torch.testing.assert_close(normalise(found.map), expected.float(), rtol=0, atol=1e-5)


def test_eigen_cam(model: nn.Sequential) -> None:
    with theirs.EigenCAM(model=model, target_layers=[model[3]]) as cam:
        expected = torch.from_numpy(cam(input_tensor=X.clone(), targets=None))
    found = eigen_cam(model, X, "3", center=True)
    # there the sign is what the decomposition makes it, and what is negative is cut off
    sides = [large((sign * found.raw).relu()) for sign in (1, -1)]
    for index in range(len(X)):
        assert min((side[index] - expected[index]).abs().max().item() for side in sides) < 1e-5
