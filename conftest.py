"""What the examples in docstrings may take for granted."""

from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _names_of_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, nn=nn)
