"""Tests of ``netwright.surgery``."""

import pytest
import torch
from torch import nn

from netwright.surgery import eval_mode, input_shapes, swap, swapped


def doubled(linear: nn.Linear) -> nn.Linear:
    new = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        new.weight.copy_(2 * linear.weight)
        if linear.bias is not None:
            new.bias.copy_(2 * linear.bias)
    return new


def test_replaces_every_match_and_leaves_the_original_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    before = [p.clone() for p in model.parameters()]
    new = swap(model, {nn.Linear: doubled})
    assert swapped(new) == ("0", "1.1")
    for parameter, old, kept in zip(new.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter, 2 * old)
        torch.testing.assert_close(kept, old)


def test_where_decides_by_name_and_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    new = swap(model, {nn.Linear: doubled}, where=lambda name, layer: name != "0" and layer.out_features == 3)
    assert swapped(new) == ("1",)


def test_the_nearest_class_of_the_inheritance_order_counts() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(2, 2), nn.Linear(2, 2))
    new = swap(model, {nn.Linear: lambda layer: nn.ReLU(), Special: lambda layer: nn.Tanh()})
    assert [type(layer) for layer in new] == [nn.Tanh, nn.ReLU]


def test_the_model_itself_may_match() -> None:
    new = swap(nn.Linear(2, 2), {nn.Linear: lambda layer: nn.Identity()})
    assert isinstance(new, nn.Identity)
    assert swapped(new) == ("",)


def test_mode_dtype_and_frozen_parameters_carry_over() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    model[0].eval()
    model[1].weight.requires_grad_(False)
    new = swap(model, {nn.Linear: doubled})
    assert (new[0].training, new[1].training) == (False, True)
    assert new[0].weight.dtype == torch.float64
    assert (new[1].weight.requires_grad, new[1].bias.requires_grad) == (False, True)


def test_device_carries_over() -> None:
    new = swap(nn.Sequential(nn.Linear(2, 2, device="meta")), {nn.Linear: lambda layer: nn.Linear(2, 2)})
    assert new[0].weight.device.type == "meta"


def test_a_layer_used_twice_stays_one_layer() -> None:
    layer = nn.Linear(2, 2)
    new = swap(nn.Sequential(layer, nn.ReLU(), layer), {nn.Linear: doubled})
    assert new[0] is new[2]


def test_a_shared_parameter_stays_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.inner = nn.Linear(3, 3)
            self.head = nn.Linear(3, 5)
            self.head.weight = self.embedding.weight

    new = swap(Tied(), {nn.Linear: doubled})
    assert new.head.weight is new.embedding.weight
    both = swap(Tied(), {nn.Linear: doubled, nn.Embedding: lambda e: nn.Embedding(5, 3)})
    assert both.head.weight is both.embedding.weight


def test_a_tie_that_cannot_be_kept_is_said() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    with pytest.warns(UserWarning, match=r"'weight'.*was shared"):
        swap(nn.Sequential(a, b), {nn.Linear: lambda layer: nn.Identity()}, where=lambda name, layer: name == "1")


def test_eval_mode_restores_every_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()
    with pytest.raises(RuntimeError), eval_mode(model):  # noqa: PT012 - an error inside is the point
        assert not model[0].training
        raise RuntimeError
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_input_shapes_of_the_layers_that_are_reached() -> None:
    model = nn.ModuleDict(
        {"used": nn.Sequential(nn.Dropout(), nn.Linear(3, 5), nn.Linear(5, 2)), "idle": nn.Linear(2, 2)}
    )
    model.forward = model["used"].forward  # type: ignore[method-assign]
    assert input_shapes(model, torch.zeros(4, 3), nn.Linear) == {"used.1": (4, 3), "used.2": (4, 5)}
    assert model.training
    assert not [m for m in model.modules() if m._forward_pre_hooks]
