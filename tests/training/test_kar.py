"""Tests of ``netwright.training.kar``."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netwright.data import load
from netwright.models.vision.classic import MLP
from netwright.training import Backprop, Budget, evaluate, fit
from netwright.training.kar import Kar2, Kar3


def run(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: Tensor) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


@given(steps=st.integers(1, 8), first=st.floats(0, 0.99), second=st.floats(0, 0.99))
def test_sign_steps_before_the_means_are_updated(steps: int, first: float, second: float) -> None:
    gradients = torch.randn(steps, 5, dtype=torch.float64)
    for make, betas in (
        (lambda p: Kar2(p, 0.1, first), (first,)),
        (lambda p: Kar3(p, 0.1, (first, second)), (first, second)),
    ):
        parameter = nn.Parameter(torch.randn(5, dtype=torch.float64))
        expected, means = parameter.detach().clone(), [torch.zeros(5, dtype=torch.float64) for _ in betas]
        for gradient in gradients:
            for direction in (gradient, *means):
                expected -= 0.1 * torch.sign(direction)
            means = [beta * mean + (1 - beta) * gradient for beta, mean in zip(betas, means, strict=True)]
        run(make([parameter]), parameter, gradients)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(("kind", "most"), [(Kar2, 2), (Kar3, 3)])
def test_the_scale_of_the_gradient_does_not_matter(kind: type[Kar2] | type[Kar3], most: int) -> None:
    gradients = torch.randn(20, 5)
    small, large = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
    run(kind([small], lr=0.1), small, gradients)
    run(kind([large], lr=0.1), large, 1000 * gradients)
    assert torch.equal(small, large)
    steady = nn.Parameter(torch.zeros(()))
    run(kind([steady], lr=0.1), steady, torch.ones(11))
    torch.testing.assert_close(steady.detach(), torch.tensor(-0.1 - 10 * most * 0.1))  # the first step has no means yet


@pytest.mark.parametrize("kind", [Kar2, Kar3])
def test_state_goes_on_where_it_was(kind: type[Kar2] | type[Kar3]) -> None:
    gradients = torch.randn(10, 5)
    whole = nn.Parameter(torch.zeros(5))
    run(kind([whole], lr=0.1), whole, gradients)
    part = nn.Parameter(torch.zeros(5))
    first = kind([part], lr=0.1)
    run(first, part, gradients[:4])
    second = kind([part], lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, part, gradients[4:])
    assert torch.equal(part, whole)


def test_groups_closures_and_parameters_without_gradients() -> None:
    fast, slow, unused = (nn.Parameter(torch.ones(())) for _ in range(3))
    optimizer = Kar3([{"params": [fast, unused], "lr": 0.5}, {"params": [slow]}], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = fast + slow
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2
    torch.testing.assert_close(torch.stack([fast, slow, unused]).detach(), torch.tensor([0.5, 0.9, 1.0]))


def test_half_precision_and_meta() -> None:
    for options in ({"dtype": torch.bfloat16}, {"device": "meta"}):
        parameter = nn.Parameter(torch.ones(3, **options))
        run(Kar3([parameter], lr=0.25), parameter, torch.ones(2, 3, **options))
        if not parameter.is_meta:
            torch.testing.assert_close(parameter.detach(), torch.zeros(3, dtype=torch.bfloat16))


def test_a_network_learns_with_a_schedule() -> None:
    splits = load("digits")
    model = MLP(64, (32,), 10)
    optimizer = Kar3(model.parameters(), lr=2e-3, betas=(0.75, 0.99))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    fit(model, splits, Budget(steps=40), Backprop(model, optimizer, scheduler=scheduler))
    assert evaluate(model, splits.val)["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Kar3(p, lr=-0.1), "lr must be at least 0, got -0.1"),
        (lambda p: Kar2(p, beta=1.0), r"beta must be in \[0, 1\), got 1.0"),
        (lambda p: Kar3(p, betas=(0.5, -0.1)), r"beta must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_input(make: Callable[[list[nn.Parameter]], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(2))])


def test_what_has_no_sign() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="the optimiser needs real dense gradients"):
        Kar3(embedding.parameters()).step()
