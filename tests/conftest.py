"""What all tests share: hypothesis without deadlines, fixed seeds, one torch thread."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("netwright", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("netwright")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that draw from the global generator
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32, "a test changed the default floating-point type"
