"""Tests of ``netwright.layers.straight_through``."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from netwright.layers.straight_through import binary_sign, sign_identity, sign_poly, sign_ste

SURROGATES: dict[Callable[[Tensor], Tensor], Callable[[float], float]] = {
    sign_identity: lambda x: 1.0,
    sign_ste: lambda x: float(abs(x) <= 1),
    sign_poly: lambda x: max(0.0, 2 - 2 * abs(x)),
}


@pytest.mark.parametrize("sign", SURROGATES)
@given(st.floats(-4, 4, width=32), st.floats(-2, 2, width=32))
def test_forward_is_the_sign_and_backward_the_surrogate(
    sign: Callable[[Tensor], Tensor], value: float, gradient: float
) -> None:
    x = torch.tensor([value], requires_grad=True)
    y = sign(x)
    assert y.item() == (-1.0 if value < 0 else 1.0)
    y.backward(torch.tensor([gradient]))
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(gradient * SURROGATES[sign](value), abs=1e-6)


@pytest.mark.parametrize("sign", [*SURROGATES, binary_sign])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_type_and_shape_stay(sign: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, dtype=dtype)
    assert sign(x).dtype == dtype
    assert sign(x).shape == x.shape
    assert sign(x.to("meta")).is_meta


# torch's tracer makes an instance of the function class, of which torch itself warns
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("sign", SURROGATES)
def test_traces_as_one_graph(sign: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(5, requires_grad=True)
    torch.compile(sign, fullgraph=True, backend="eager")(x).sum().backward()
    compiled, x.grad = x.grad, None
    sign(x).sum().backward()
    torch.testing.assert_close(compiled, x.grad)


@pytest.mark.parametrize("sign", SURROGATES)
def test_maps_over_a_batch(sign: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 5)
    slopes = torch.vmap(torch.func.grad(lambda row: sign(row).sum()))(x)
    expected = torch.tensor([[SURROGATES[sign](value) for value in row] for row in x.tolist()])
    torch.testing.assert_close(slopes, expected)
