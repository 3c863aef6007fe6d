"""The noise schedule against ``optax.add_noise``."""

import math

import pytest

from netwright.training.gradient_noise import gradient_noise_std

optax = pytest.importorskip("optax")
jax = pytest.importorskip("jax")


def test_schedule_is_that_of_optax_one_update_later() -> None:
    """Optax counts from 1 (variance η / count^γ after the increment), which is our 1 + t with t from 0."""
    eta, gamma, entries = 0.3, 0.55, 40_000
    transform = optax.add_noise(eta, gamma, 0)
    zeros = jax.numpy.zeros(entries)
    state = transform.init(zeros)
    for step in range(4):
        noise, state = transform.update(zeros, state)
        assert float(noise.std()) == pytest.approx(gradient_noise_std(step, eta, gamma), rel=4 / math.sqrt(2 * entries))
