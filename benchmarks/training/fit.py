"""``fit`` with plain backprop against loops written by hand, on MLPs with batch 64, where overhead shows most."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import side_by_side
from netwright.data import Split, Splits, Task
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Settings, fit

SAMPLES, BATCH, EPOCHS = 4096, 64, 20


def measure(features: int, hidden: int) -> None:
    inputs, targets = torch.randn(SAMPLES, features), torch.randint(10, (SAMPLES,))
    train, few = Split(inputs, targets), Split(inputs[:16], targets[:16])
    splits = Splits("random", train, few, few, Task.TABULAR_CLASSIFICATION, (features,), tuple("0123456789"))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=BATCH, shuffle=True)

    def make_model() -> nn.Module:
        torch.manual_seed(0)
        return MLP(features, (hidden, hidden), 10)

    def update(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def bare_loop() -> None:
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            order = torch.randperm(SAMPLES)
            shuffled_inputs, shuffled_targets = inputs[order], targets[order]
            for start in range(0, SAMPLES, BATCH):
                stop = start + BATCH
                update(model, optimizer, shuffled_inputs[start:stop], shuffled_targets[start:stop])

    def loader_loop() -> None:
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            for x, y in loader:
                update(model, optimizer, x, y)

    def fit_loop() -> None:
        fit(make_model(), splits, Budget(epochs=EPOCHS), settings=Settings(batch_size=BATCH))

    candidates = {"bare loop": bare_loop, "DataLoader loop": loader_loop, "fit": fit_loop}
    title = f"{EPOCHS} epochs of {SAMPLES // BATCH} updates with Adam, MLP {features}-{hidden}-{hidden}-10, one thread"
    for baseline, target in (("bare loop", 1.08), ("DataLoader loop", 0.9)):
        side_by_side(title, candidates, baseline=baseline, targets={"fit": target}, rounds=6)


if __name__ == "__main__":
    measure(784, 128)  # the model `mlp` on MNIST
    measure(64, 64)  # an extreme: almost nothing but overhead
