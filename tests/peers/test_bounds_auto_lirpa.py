"""Our bounds against those of auto_LiRPA."""

import pytest
import torch
from torch import nn

from netwright.verify.bounds import ball, crown, ibp

theirs = pytest.importorskip(
    "auto_LiRPA", reason="auto_LiRPA is not installed, or not made for this torch", exc_type=ImportError
)

pytestmark = pytest.mark.filterwarnings("ignore")


def network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "perceptron":
        layers = nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
        return nn.Sequential(*layers).eval(), torch.rand(4, 5)
    body = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(36, 3)).eval(), torch.rand(4, 1, 8, 8)


@pytest.mark.parametrize("kind", ["perceptron", "convolutions"])
@pytest.mark.parametrize("radius", [0.02, 0.1, 0.5])
@pytest.mark.parametrize(("ours", "method"), [(ibp, "IBP"), (crown, "backward")])
def test_bounds(kind: str, radius: float, ours: object, method: str) -> None:
    model, x = network(kind)
    norm = theirs.PerturbationLpNorm(norm=float("inf"), eps=radius)
    bounded = theirs.BoundedModule(model, torch.empty_like(x))
    lower, upper = bounded.compute_bounds(x=(theirs.BoundedTensor(x, norm),), method=method)
    found = ours(model, ball(x, radius))  # type: ignore[operator]
    torch.testing.assert_close(found.lower.float(), lower.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.upper.float(), upper.detach(), rtol=0, atol=1e-5)
