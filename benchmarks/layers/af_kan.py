"""AF-KAN against the multi-layer perceptron and the spline KAN of the same widths: time of a training step."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.layers.af_kan import AFKAN, ReLUKANLayer
from netwright.layers.kan import KANLayer

BATCH = 64


def main() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))
    networks: dict[str, nn.Module] = {
        "MLP": nn.Sequential(nn.Linear(784, 64), nn.SiLU(), nn.Linear(64, 10)),
        "AF-KAN": AFKAN([784, 64, 10]),
        "spline KAN": nn.Sequential(KANLayer(784, 64), KANLayer(64, 10)),
        "ReLU-KAN": nn.Sequential(ReLUKANLayer(784, 64), ReLUKANLayer(64, 10)),
    }

    def steps(network: nn.Module) -> object:
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

        def step() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()

        return step

    candidates = {name: steps(network) for name, network in networks.items()}
    for baseline, target in (("MLP", 4.0), ("spline KAN", 0.6)):
        side_by_side(
            f"training step of 784-64-10, batch {BATCH}",
            candidates,  # type: ignore[arg-type]
            baseline=baseline,
            rounds=100,
            targets={"AF-KAN": target},
        )


if __name__ == "__main__":
    main()
