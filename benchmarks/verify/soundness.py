"""All restarts of an attack as one batch, against one restart after the other."""

import torch

from benchmarks.timing import side_by_side
from netwright.models.vision.classic import MLP
from netwright.verify.pgd import strongest
from netwright.verify.soundness import make_instances

RESTARTS = 75


def main() -> None:
    torch.manual_seed(0)
    model = MLP(10, (50, 50), 2)
    for num in (6, 1):
        made = make_instances((10,), 0.5, num)
        x, y, radius = made.x, made.y, made.radius

        def attack(restarts: int, x: torch.Tensor = x, y: torch.Tensor = y, radius: float = radius) -> object:
            return strongest(model, x, y, radius, radius / 10, 5, restarts=restarts, lo=-0.1, hi=0.1)

        side_by_side(
            f"5 steps of PGD from {RESTARTS} starts, {num} input{'s' if num > 1 else ''}, perceptron 10-50-50-2",
            {
                "one restart after the other": lambda attack=attack: [attack(1) for _ in range(RESTARTS)],
                "all restarts as one batch": lambda attack=attack: attack(RESTARTS),
            },
            baseline="one restart after the other",
            rounds=10,
            targets={"all restarts as one batch": 0.05},
        )


if __name__ == "__main__":
    main()
