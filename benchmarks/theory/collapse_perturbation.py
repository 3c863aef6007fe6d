"""The nearby-features model, solved to a gradient of 1e-8: turns of closed forms against Adam and L-BFGS."""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from benchmarks.timing import side_by_side
from netwright.theory.collapse_perturbation import NearbyFeatureModel

TOLERANCE = 1e-8
LR = 0.01  # the best of 0.003, 0.01 and 0.03


def by_adam(model: NearbyFeatureModel, lr: float) -> int:
    """Steps of Adam, with gradients written out, until the largest entry of the gradient is below the tolerance."""
    H, W = model.H0.clone(), model.optimal_classifier(model.H0)
    optimizer = torch.optim.Adam([H, W], lr=lr)
    # a rate that does not fall leaves Adam circling the minimum
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    for step in range(1, 100_001):
        error = H @ W.T - model.targets
        H.grad = (error @ W + model.lam_h * H + model.beta * (H - model.H0)) / model.samples
        W.grad = error.T @ H / model.samples + model.lam_w / model.classes * W
        if max(H.grad.abs().max(), W.grad.abs().max()) < TOLERANCE:
            return step
        optimizer.step()
        scheduler.step()
    raise RuntimeError("Adam did not get there")


def by_lbfgs(model: NearbyFeatureModel) -> float:
    n, d, k = *model.H0.shape, model.classes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        H, W = (part.view(-1, d) for part in torch.from_numpy(flat).split([n * d, k * d]))
        error = H @ W.T - model.targets
        pull = (error @ W + model.lam_h * H + model.beta * (H - model.H0)) / n
        push = error.T @ H / n + model.lam_w / k * W
        return float(model.loss(H, W)), torch.cat([pull.flatten(), push.flatten()]).numpy()

    start = torch.cat([model.H0.flatten(), model.optimal_classifier(model.H0).flatten()]).numpy()
    options = {"maxiter": 20_000, "ftol": 0, "gtol": TOLERANCE}
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun)


def problem(samples: int, width: int) -> NearbyFeatureModel:
    labels = torch.arange(samples) % 10
    features: Tensor = torch.randn(10, width)[labels] / width**0.5 + 0.5 * torch.randn(samples, width) / width**0.5
    return NearbyFeatureModel(features, labels, lam_w=0.05, lam_h=0.05, beta=0.1)


def main() -> None:
    torch.manual_seed(0)
    small, large = problem(1000, 64), problem(5000, 128)
    side_by_side(
        "nearby features to a gradient of 1e-8: 1,000 samples, width 64",
        {
            "Adam": lambda: by_adam(small, LR),
            "L-BFGS": lambda: by_lbfgs(small),
            "turns of closed forms": lambda: small.fit(tol=TOLERANCE),
        },
        baseline="Adam",
        rounds=5,
        targets={"turns of closed forms": 0.1},
    )
    side_by_side(
        "nearby features to a gradient of 1e-8: 5,000 samples, width 128",
        {"Adam": lambda: by_adam(large, LR), "turns of closed forms": lambda: large.fit(tol=TOLERANCE)},
        baseline="Adam",
        rounds=3,
        targets={"turns of closed forms": 0.1},
    )


if __name__ == "__main__":
    main()
