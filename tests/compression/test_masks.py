"""Tests of ``netwright.compression.masks``."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils import prune

from netwright.checks import InputError
from netwright.compression.masks import Mask, make_permanent, prunable, shapes_of
from netwright.cost import count_nonzero
from netwright.models.vision.classic import MLP
from netwright.models.vision.resnet import resnet_cifar
from netwright.training.gradient_noise import GradientNoise


def half(model: nn.Module) -> Mask:
    shapes = shapes_of(model)
    return Mask.random(shapes, dict.fromkeys(shapes, 0.5))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "noise": lambda p: GradientNoise(torch.optim.Adam(p, lr=0.1)),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dead_weights_stay_exactly_zero_through_any_optimiser(name: str, gradients: bool) -> None:
    model = MLP(6, (8, 8), 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)  # so that momentum of the dead weights is there
    mask = half(model)
    mask.attach_(model, gradients=gradients)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    train(model, optimizer)
    state = model.state_dict()
    make_permanent(model)
    for key, tensor in mask.items():
        weight = model.get_parameter(key).detach()
        assert not weight[~tensor].any()
        assert (weight != before[key])[tensor].float().mean() > 0.5
        assert torch.equal(state[key], weight)


def test_masked_network_computes_with_masked_weights_and_has_their_gradient() -> None:
    layer = nn.Linear(5, 4, dtype=torch.float64)
    mask = Mask({"weight": torch.rand(4, 5) < 0.5})
    x = torch.randn(3, 5, dtype=torch.float64)
    weight = layer.weight.detach().clone()
    mask.attach_(layer, gradients=True)
    torch.testing.assert_close(layer(x), x @ (weight * mask["weight"]).T + layer.bias)
    layer(x).sum().backward()
    gradient = layer._parameters["weight"].grad
    torch.testing.assert_close(gradient, x.sum(0).expand(4, 5) * mask["weight"])

    def by_weight(value: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": value}, (x,))

    assert gradcheck(by_weight, (torch.randn(4, 5, dtype=torch.float64, requires_grad=True),))


def test_both_kinds_of_mask_train_alike() -> None:
    """Rules that treat every entry by itself move the living weights alike, whether the dead have gradients or not."""
    start = MLP(6, (8, 8), 3)
    mask, trained = half(start), []
    for gradients in (False, True):
        model = copy.deepcopy(start)
        mask.attach_(model, gradients=gradients)
        torch.manual_seed(1)
        train(model, torch.optim.Adam(model.parameters(), lr=0.01))
        trained.append(make_permanent(model).state_dict())
    torch.testing.assert_close(*trained)


def test_reading_twice_does_not_disturb_backward() -> None:
    layer = nn.Linear(6, 6)
    half(layer).attach_(layer)
    output = layer(layer(torch.randn(3, 6)))
    assert layer.weight.shape == (6, 6)
    output.sum().backward()
    assert layer.weight.grad is not None


def test_tensors_of_the_caller_are_left_alone() -> None:
    layer = nn.Linear(5, 4)
    mask = half(layer)
    mask.attach_(layer)
    weight = torch.randn(4, 5, requires_grad=True)
    before = weight.detach().clone()
    (gradient,) = torch.autograd.grad(
        torch.func.functional_call(layer, {"weight": weight}, torch.ones(2, 5)).sum(), weight
    )
    assert torch.equal(weight.detach(), before)
    assert torch.equal(gradient != 0, mask["weight"])


def test_names_are_kept_so_states_go_between_masked_and_plain() -> None:
    plain, masked = MLP(6, (8,), 3), MLP(6, (8,), 3)
    mask = half(masked)
    mask.attach_(masked)
    assert [name for name, _ in masked.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert masked.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        for parameter in masked.parameters():
            parameter.add_(1)  # even what was written past the mask does not get out
    plain.load_state_dict(load(save(masked.state_dict())))
    x = torch.randn(4, 6)
    assert torch.equal(plain(x), masked(x))
    assert not plain[1].weight[~mask["1.weight"]].any()
    masked.load_state_dict(MLP(6, (8,), 3).state_dict())
    assert not masked[1].weight[~mask["1.weight"]].any()
    assert Mask(load(save(dict(mask)))) == mask
    assert Mask({name: tensor.float() for name, tensor in mask.items()}) == mask


def test_copies_and_pickles_stay_masked() -> None:
    model = MLP(6, (8,), 3)
    mask = half(model)
    mask.attach_(model)
    x = torch.randn(2, 6)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), expected)
        assert Mask.of(twin) == mask
        make_permanent(twin)
    assert Mask.of(model) == mask  # the copies did not share the mask


def test_permanent_model_is_plain_again() -> None:
    model = MLP(6, (8,), 3)
    assert len(Mask.of(model)) == 0
    mask = half(model)
    mask.attach_(model)
    assert isinstance(model[1], nn.Linear)
    x = torch.randn(2, 6)
    expected = model(x)
    assert make_permanent(model) is model
    assert torch.equal(model(x), expected)
    assert type(model[1]) is nn.Linear
    assert not dict(model.named_buffers())
    assert count_nonzero(model) == mask.kept + 8 + 3
    assert len(Mask.of(model)) == 0


def test_new_mask_takes_the_place_of_the_old() -> None:
    model = nn.Linear(10, 10)
    first, second = half(model), half(model)
    first.attach_(model)
    second.attach_(model)
    assert Mask.of(model) == second
    assert type(model).__mro__[1] is nn.Linear
    assert torch.equal(model.weight.detach() != 0, (first & second)["weight"])


def test_tied_weights_are_masked_at_every_place() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    mask = half(model)
    assert list(mask) == ["0.weight"]
    mask.attach_(model)
    assert torch.equal(model[0].weight, model[1].weight)
    assert not model[1].weight[~mask["0.weight"]].any()
    assert count_nonzero(model) == mask.kept + 12
    make_permanent(model)
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_use_the_mask(kind: type[nn.RNNBase]) -> None:
    layer = kind(3, 4, batch_first=True)
    half(layer).attach_(layer, gradients=True)
    x = torch.randn(2, 5, 3)
    masked, _ = layer(x)
    masked.sum().backward()
    gradient = layer._parameters["weight_hh_l0"].grad
    assert not gradient[layer.weight_hh_l0 == 0].any()
    plain = kind(3, 4, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain(x)[0], masked)
    torch.testing.assert_close(make_permanent(layer)(x)[0], masked)


def test_attention_uses_the_mask() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    mask = half(layer)
    assert sorted(mask) == ["in_proj_weight", "out_proj.weight"]
    mask.attach_(layer)
    x = torch.randn(2, 5, 8)
    masked, _ = layer(x, x, x)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain(x, x, x)[0], masked)


def test_autocast_compile_and_moves() -> None:
    model = MLP(6, (8,), 3)
    mask = half(model)
    mask.attach_(model)
    x = torch.randn(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    model.double()
    assert model(x.double()).dtype == torch.float64
    assert Mask.of(model) == mask
    assert half(MLP(6, (8,), 3).to("meta")).attach_(MLP(6, (8,), 3).to("meta"))(x.to("meta")).shape == (2, 3)


def test_prunable_leaves_norms_embeddings_biases_and_listed_parameters() -> None:
    class Listed(nn.Module):
        dense_parameters = ("algebra",)

        def __init__(self) -> None:
            super().__init__()
            self.algebra = nn.Parameter(torch.ones(2, 2, 2))
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.bias = nn.Parameter(torch.ones(4))

    class StrangeNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))

    model = nn.Sequential(
        nn.Embedding(5, 4), Listed(), nn.LayerNorm((3, 4)), StrangeNorm2d(), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    assert list(prunable(model)) == ["1.weight", "5.weight"]
    assert list(prunable(model, ignore=["5"])) == ["1.weight"]
    assert list(prunable(model, ignore=["1.weight"])) == ["5.weight"]
    with pytest.raises(InputError, match=r"unknown layer in ignore '5.wight'; did you mean '5.weight'"):
        prunable(model, ignore=["5.wight"])
    with pytest.raises(InputError, match="nothing to prune"):
        prunable(nn.LayerNorm(4))


def test_published_counts_of_prunable_weights() -> None:
    with torch.device("meta"):
        models = {width: resnet_cifar(20, width, shortcut="B") for width in (8, 16, 24)}
    assert {w: sum(p.numel() for p in m.parameters()) for w, m in models.items()} == {
        8: 68_786,
        16: 272_474,
        24: 611_074,
    }
    assert Mask.dense(models[16]).size == 270_896


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    density=st.floats(0.3, 1.0),
    seed=st.integers(0, 100),
)
def test_exact_draws_hit_the_count(sizes: list[tuple[int, int]], density: float, seed: int) -> None:
    shapes = {str(index): (rows + 3, columns + 3) for index, (rows, columns) in enumerate(sizes)}
    mask = Mask.random(shapes, dict.fromkeys(shapes, density), generator=torch.Generator().manual_seed(seed))
    total = sum(rows * columns for rows, columns in shapes.values())
    assert mask.kept == round(density * total)
    for name, own in mask.layer_densities().items():
        assert abs(own - density) * mask[name].numel() < 1 + 1e-6


def test_counts_are_those_of_torch_prune() -> None:
    layer = nn.Linear(37, 23)
    prune.random_unstructured(layer, "weight", amount=0.7)
    mask = Mask.random({"weight": (23, 37)}, {"weight": 0.3})
    assert mask.kept == int(layer.weight_mask.sum())


def test_draws_are_uniform_and_the_generator_decides() -> None:
    shapes, densities = {"a": (10, 10)}, {"a": 0.2}
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([Mask.random(shapes, densities, generator=generator)["a"].float() for _ in range(1500)]).mean(0)
    assert (mean - 0.2).abs().max() < 4.5 * (0.2 * 0.8 / 1500) ** 0.5
    again = [Mask.random(shapes, densities, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert again[0] == again[1]
    kept = [Mask.random({"a": (100, 100)}, densities, exact=False, generator=generator).kept for _ in range(20)]
    assert len(set(kept)) > 1  # Bernoulli: on average only
    assert abs(sum(kept) / 20 - 2000) < 4 * 40 / 20**0.5


@given(seed=st.integers(0, 1000))
def test_shuffles_keep_counts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = Mask.random({"a": (6, 7), "b": (5, 8)}, {"a": 0.2, "b": 0.7}, generator=generator)
    layerwise = mask.shuffle("layerwise", generator)
    assert layerwise.layer_densities() == mask.layer_densities()
    assert mask.shuffle("global", generator).kept == mask.kept


def test_shuffles_move_weights() -> None:
    mask = Mask.random({"a": (50, 50), "b": (50, 50)}, {"a": 0.1, "b": 0.9})
    assert mask.shuffle() != mask
    densities = mask.shuffle("global").layer_densities()
    assert all(abs(density - 0.5) < 0.05 for density in densities.values())


def test_apply_zeroes_once() -> None:
    model = nn.Linear(6, 6)
    mask = half(model)
    assert mask.apply_(model) is model
    assert int(model.weight.count_nonzero()) == mask.kept == 18
    assert repr(mask) == "Mask(18 of 36 weights in 1 layers, density 0.5000)"


def test_bad_masks_are_named() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(InputError, match=r"mask of 'weight' must be of zeros and ones"):
        Mask({"weight": torch.tensor([[0.0, 0.5, 1.0]])})
    with pytest.raises(InputError, match=r"mask of 'weight' must have shape \(2, 3\), got \(3, 2\)"):
        Mask({"weight": torch.ones(3, 2)}).attach_(model)
    with pytest.raises(InputError, match=r"unknown parameter 'wieght'; did you mean 'weight'"):
        Mask({"wieght": torch.ones(2, 3)}).apply_(model)
    with pytest.raises(InputError, match=r"layer 'a' would be empty: density 0.01 keeps none of its 12 weights"):
        Mask.random({"a": (3, 4), "b": (9, 9)}, {"a": 0.01, "b": 1.0})
    with pytest.raises(InputError, match=r"layer 'a' would keep none of its 4 weights"):
        Mask.random({"a": (2, 2)}, {"a": 0.0}, exact=False)
    with pytest.raises(InputError, match=r"unknown layer in densities 'a'"):
        Mask.random({"a": (2, 2)}, {"b": 0.5})
    with pytest.raises(InputError, match=r"density of 'a' must be in \[0, 1\], got 1.5"):
        Mask.random({"a": (2, 2)}, {"a": 1.5})
    with pytest.raises(InputError, match=r"unknown mode 'both'"):
        Mask.dense(model).shuffle("both")  # type: ignore[arg-type]
