"""Tests of ``netwright.compression.random_pruning``."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.checks import InputError
from netwright.compression.densities import erk
from netwright.compression.masks import Mask, shapes_of
from netwright.compression.random_pruning import ALLOCATIONS, grasp_scores, random_prune, snip_scores
from netwright.cost import count_nonzero
from netwright.data import load
from netwright.data.splits import Batch
from netwright.models.vision.classic import MLP, lenet_300_100
from netwright.models.vision.resnet import resnet_cifar
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, make_fabric
from netwright.training.gradient_noise import GradientNoise


def batch(features: int = 6, classes: int = 3) -> Batch:
    return Batch(torch.randn(32, features), torch.randint(classes, (32,)))


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_allocation_hits_the_density_exactly(allocation: str) -> None:
    model = MLP(6, (40, 20), 3)
    size = 6 * 40 + 40 * 20 + 20 * 3
    x = torch.randn(2, 6)
    mask = random_prune(model, 0.3, allocation, batch=batch())
    assert mask.size == size
    assert mask.kept == round(0.3 * size)
    assert Mask.of(model) == mask
    assert model(x).shape == (2, 3)


def test_layers_get_the_densities_of_the_allocation() -> None:
    model = resnet_cifar(8, 8, shortcut="B")
    expected = erk(shapes_of(model), 0.2)
    mask = random_prune(model, 0.2)
    for name, density in mask.layer_densities().items():
        assert abs(density - expected[name]) * mask[name].numel() <= 1
    assert all(parameter.all() for name, parameter in model.named_parameters() if name.endswith("norm.weight"))


def test_generator_decides_positions() -> None:
    masks = [random_prune(MLP(6, (8,), 3), 0.5, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert masks[0] == masks[1]
    assert random_prune(MLP(6, (8,), 3), 0.5, generator=torch.Generator().manual_seed(2)) != masks[0]


def test_densities_can_be_given_by_name_or_function() -> None:
    given = {"1.weight": 0.5, "3.weight": 1.0}
    for allocation in (given, lambda *_: given):
        assert random_prune(MLP(6, (8,), 3), 0.5, allocation).layer_densities() == given


def test_ignored_layers_are_neither_pruned_nor_counted() -> None:
    model = MLP(6, (8,), 3)
    mask = random_prune(model, 0.25, "uniform", ignore=["3"])
    assert (list(mask), mask.kept) == (["1.weight"], 12)
    assert count_nonzero(model) == 12 + 8 + 24 + 3


def test_rescaled_start_keeps_the_variance_of_outputs() -> None:
    x = torch.randn(500, 784)
    spread = {}
    for rescale in (False, True):
        layer = nn.Linear(784, 400, bias=False)
        full = layer(x).var()
        random_prune(layer, 0.1, "uniform", rescale=rescale)
        spread[rescale] = float((layer(x).var() / full).detach())
    assert spread[False] == pytest.approx(0.1, rel=0.1)
    assert spread[True] == pytest.approx(1.0, rel=0.1)


def test_snip_is_the_derivative_by_a_multiplier_of_the_weight() -> None:
    layer, data = nn.Linear(6, 3, dtype=torch.float64), batch()
    data = Batch(data.inputs.double(), data.targets)
    multiplier = torch.ones(3, 6, dtype=torch.float64, requires_grad=True)
    loss = functional.cross_entropy(functional.linear(data.inputs, layer.weight * multiplier, layer.bias), data.targets)
    (expected,) = torch.autograd.grad(loss, multiplier)
    torch.testing.assert_close(snip_scores(layer, data)["weight"], expected.abs())


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    layer, data = nn.Linear(4, 3, bias=False, dtype=torch.float64), batch(4)
    data = Batch(data.inputs.double(), data.targets)

    def loss(weight: Tensor) -> Tensor:
        return functional.cross_entropy(functional.linear(data.inputs, weight) / 200, data.targets)

    weight = layer.weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight)
    gradient = torch.func.grad(loss)(weight)
    expected = weight * torch.einsum("ijkl,kl->ij", hessian, gradient)
    torch.testing.assert_close(grasp_scores(layer, data)["weight"], expected)


def test_scores_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    for scores in (snip_scores(model, batch()), grasp_scores(model, batch())):
        assert list(scores) == ["0.weight", "3.weight"]
        assert all(not score.requires_grad for score in scores.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert model[3].weight.grad is None


def test_regression_has_scores_too() -> None:
    data = Batch(torch.randn(16, 6), torch.randn(16, 1))
    for allocation in ("snip", "grasp"):
        assert random_prune(MLP(6, (16,), 1), 0.5, allocation, batch=data).kept == 56


def test_bad_input_is_named() -> None:
    for density in (0.0, 1.5):
        with pytest.raises(InputError, match=r"density must be in \(0.*, 1\]"):
            random_prune(MLP(6, (8,), 3), density)
    with pytest.raises(InputError, match=r"unknown allocation 'erq'; did you mean 'erk'"):
        random_prune(MLP(6, (8,), 3), 0.5, "erq")
    with pytest.raises(InputError, match=r"allocation 'snip' needs a batch"):
        random_prune(MLP(6, (8,), 3), 0.5, "snip")
    with pytest.raises(InputError, match=r"unknown layer in ignore 'bn'"):
        random_prune(MLP(6, (8,), 3), 0.5, ignore=["bn"])
    with pytest.raises(InputError, match=r"cannot be met"):
        random_prune(lenet_300_100(), 0.001, "erk_plus")
    with pytest.raises(InputError, match=r"layer '3.weight' would be empty"):
        random_prune(MLP(6, (8,), 3), 0.5, {"1.weight": 1.0, "3.weight": 0.0})


def finished(text: str, epochs: float = 4) -> tuple[nn.Module, Trainer, dict[str, float]]:
    splits, chain = load("digits"), parse_chain(text)
    torch.manual_seed(0)
    model = chain.build(MLP(64, (40,), 10), splits)
    trainer = Trainer(
        splits,
        Budget(epochs=epochs),
        Settings(optimizer="sgd", lr=0.1, weight_decay=1e-3),
        seed=0,
        fabric=make_fabric(),
        make_rule=chain.make_rule,
        initial_state=copy.deepcopy(model.state_dict()),
    )
    history = trainer.fit(model, chain.training_share)
    return chain.finish(model, trainer), trainer, history.records[-1]


def test_recipe_leaves_a_plain_sparse_network() -> None:
    model, _, record = finished("random-pruning[density=0.25]")
    assert record["val_accuracy"] > 0.7
    assert type(model[1]) is nn.Linear
    assert int(model[1].weight.count_nonzero() + model[3].weight.count_nonzero()) == round(0.25 * (64 * 40 + 400))


def test_recipe_combines_with_noise() -> None:
    model, trainer, record = finished("random-pruning[density=0.25,allocation=snip]+gradient-noise[eta=0.01]")
    assert isinstance(trainer.make_rule(model, trainer).optimizer, GradientNoise)
    assert record["val_accuracy"] > 0.7
    assert int(model[1].weight.count_nonzero() + model[3].weight.count_nonzero()) == 740


def test_recipe_needs_something_to_prune() -> None:
    splits = load("digits")
    with pytest.raises(InputError, match="nothing to prune"):
        parse_chain("random-pruning").build(nn.Sequential(nn.Flatten(), nn.LayerNorm(64)), splits)
