"""Tests of ``netwright.training.subspace``: the transform, the projections, the model, the compressed file."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from netwright.cost import count_params, saved_bytes
from netwright.data import load
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Settings, evaluate, fit
from netwright.training._projections import PROJECTIONS, Dense, DenseBlocks, Fastfood, make_projection
from netwright.training.subspace import SubspaceModel, fwht, load_compressed, save_compressed

KINDS = sorted(PROJECTIONS)
CPU = torch.device("cpu")


def lenet(device: str = "cpu") -> nn.Sequential:
    """The paper's LeNet-5, without padding."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, device=device),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, device=device),
        nn.ReLU(),
        nn.MaxPool2d(2),
        MLP(256, (120, 84), 10).to(device),
    )


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def matrix(projection: nn.Module, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """P itself, by its columns."""
    return torch.stack([projection(unit) for unit in torch.eye(dim, dtype=dtype)], dim=1)


def moved(model: SubspaceModel) -> SubspaceModel:
    """The model, away from its start."""
    nn.init.normal_(model.theta_d, generator=torch.Generator().manual_seed(1))
    return model


@given(bits=st.integers(0, 9), rows=st.integers(1, 3))
def test_transform_is_the_product_with_the_hadamard_matrix(bits: int, rows: int) -> None:
    x = torch.randn(rows, 2**bits, dtype=torch.float64)
    torch.testing.assert_close(fwht(x), x @ torch.from_numpy(hadamard(2**bits)).double())
    torch.testing.assert_close(fwht(fwht(x)), 2**bits * x)


def test_published_example_of_the_transform() -> None:
    x = torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0])
    assert fwht(x).tolist() == [4, 2, 0, -2, 0, 2, 0, 2]
    assert fwht(torch.tensor([3.0])).tolist() == [3]


def test_transform_has_gradients_and_full_precision_under_autocast() -> None:
    assert gradcheck(fwht, torch.randn(2, 64, dtype=torch.float64, requires_grad=True))
    x = torch.randn(1024)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fwht(x).double(), fwht(x.double()), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[300], [90, 1, 7, 202]])
def test_gradient_is_the_transposed_map(kind: str, sizes: list[int]) -> None:
    projection = make_projection(kind, 12, sizes, 5, CPU, torch.float64)
    P = matrix(projection, 12, torch.float64)
    v = torch.randn(12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(projection(v), P @ v)
    (gradient,) = torch.autograd.grad(projection(v) @ P[:, 3], v)
    torch.testing.assert_close(gradient, P.t() @ P[:, 3])


@pytest.mark.parametrize("kind", ["dense", "dense-blocks", "sparse"])
def test_columns_have_length_1(kind: str) -> None:
    P = matrix(make_projection(kind, 20, [1100], 5, CPU, torch.float32), 20)
    torch.testing.assert_close(P.norm(dim=0), torch.ones(20), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["fastfood", "fjlt"])
@pytest.mark.parametrize("size", [1_000, 44_426, 199_210])
def test_columns_of_fast_projections_have_length_1_within_2_percent(kind: str, size: int) -> None:
    P = matrix(make_projection(kind, 40, [size], 5, CPU, torch.float32), 40)
    assert (P.norm(dim=0) - 1).abs().max() < 0.02


def test_length_of_columns_spreads_as_documented_where_half_of_the_rows_are_cut() -> None:
    lengths = matrix(make_projection("fastfood", 400, [1_100], 5, CPU, torch.float32), 400).norm(dim=0)
    assert lengths.std().item() == pytest.approx(math.sqrt((1 - 1100 / 2048) / 2200), rel=0.2)
    assert lengths.mean().item() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_nearly_orthogonal(kind: str) -> None:
    P = matrix(make_projection(kind, 30, [5_000], 5, CPU, torch.float32), 30)
    products = P.t() @ P - torch.diag((P * P).sum(0))
    assert products.abs().max() < 6 / math.sqrt(5_000)
    assert products.abs().max() > 0.5 / math.sqrt(5_000)  # random, not an orthonormal basis


def test_fastfood_is_its_definition() -> None:
    size, dim, full = 50, 5, 64
    projection = Fastfood(dim, size, 3, CPU, torch.float64)
    H = torch.from_numpy(hadamard(full)).double()
    B = torch.diag(nn.functional.pad(projection.signs, (0, full - dim)))
    generator = torch.Generator().manual_seed(3)
    torch.randint(2, (dim,), generator=generator)
    order = torch.randperm(full, generator=generator)
    gauss = torch.randn(full, generator=generator).double()
    divisor = math.sqrt(full * float(gauss.square().sum())) * math.sqrt(size / full)
    dense = H @ torch.diag(gauss) @ torch.eye(full, dtype=torch.float64)[order] @ H @ B / divisor
    torch.testing.assert_close(matrix(projection, dim, torch.float64), dense[:size, :dim])


def test_sparse_has_the_published_density_and_signs() -> None:
    P = matrix(make_projection("sparse", 50, [10_000], 1, CPU, torch.float32), 50)
    entries = (P != 0).sum().item()
    assert entries / P.numel() == pytest.approx(0.01, abs=4 * math.sqrt(0.01 / P.numel()))
    signs = P.sign().sum().item()
    assert abs(signs) < 4 * math.sqrt(entries)
    magnitudes = P.abs()
    assert all(len(column[column > 0].unique()) == 1 for column in magnitudes.t())
    corner = (P[:5000] != 0).sum().item()  # places are spread evenly
    assert abs(corner - entries / 2) < 3 * math.sqrt(entries)


@pytest.mark.parametrize("kind", ["sparse", "fjlt"])
@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_no_column_is_empty(kind: str, size: int) -> None:
    P = matrix(make_projection(kind, 40, [size], 0, CPU, torch.float32), 40)
    assert (P.norm(dim=0) > 0.1).all()


def test_blocks_draw_the_same_matrix_as_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netwright.training._projections._BLOCK_ENTRIES", 3 * 300)
    dense, blocks = (kind(7, 300, 11, CPU, torch.float64) for kind in (Dense, DenseBlocks))
    assert not list(blocks.buffers())
    v = torch.randn(7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(blocks(v), dense(v))
    assert gradcheck(blocks, v)
    assert gradgradcheck(blocks, v)


def test_fast_projections_store_less_than_a_hundredth_of_dense() -> None:
    for kind in ("fastfood", "fjlt", "sparse"):
        projection = make_projection(kind, 1000, [199_210], 0, CPU, torch.float32)
        stored = sum(buffer.nbytes for buffer in projection.buffers())
        v = torch.zeros(1000, requires_grad=True)
        kept = saved_bytes(projection, v)
        assert stored <= 0.01 * 4 * 1000 * 199_210
        assert kept <= 0.01 * 4 * 1000 * 199_210


def test_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        networks = {
            199_210: (MLP(784, (200, 200), 10), 750),
            44_426: (lenet("meta"), 290),
            656_810: (MLP(3072, (200, 200), 10), 9_000),
        }
        for size, (network, dim) in networks.items():
            for kind in KINDS:
                model = SubspaceModel(network, dim, kind)  # type: ignore[arg-type]
                assert (model.size, count_params(model)) == (size, dim)
                assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
            shape = (2, 3, 32, 32) if size == 656_810 else (2, 1, 28, 28)
            assert model(torch.empty(shape)).shape == (2, 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_layer", [False, True])
def test_parameters_are_the_start_plus_the_projected_vector(kind: str, per_layer: bool) -> None:
    network = small().double()
    before = copy.deepcopy(network.state_dict())
    model = SubspaceModel(network, 5, kind, seed=3, per_layer=per_layer).eval()  # type: ignore[arg-type]
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network.eval()(x))  # the vector starts at zero
    moved(model)
    step = model.project(model.theta_d)
    start = torch.cat([p.flatten() for p in network.parameters()])
    flat = torch.cat([model.weights()[name].flatten() for name, _ in network.named_parameters()])
    torch.testing.assert_close(flat, start + step)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {"theta_d": (5,)}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_layers_share_the_length_of_a_column_when_each_has_its_own_projection() -> None:
    model = SubspaceModel(small(), 4, "dense", per_layer=True)
    P = matrix(model.project, 4)
    lengths = [part.norm(dim=0) for part in torch.split(P, [56, 16, 27])]
    for length in lengths:
        torch.testing.assert_close(length, torch.full((4,), 1 / math.sqrt(3)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    model = SubspaceModel(small().double(), 4, kind).train()  # type: ignore[arg-type]
    x = torch.randn(3, 6, dtype=torch.float64)
    v = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: functional_call(model, {"theta_d": v}, (x,)), v)


def test_with_d_equal_to_D_it_reaches_what_the_network_can_do() -> None:
    """A square P spans everything: a step in theta_d along P^-1 g is any step of the network."""
    network = nn.Linear(5, 3).double()
    model = SubspaceModel(network, 18, "dense")
    goal = torch.randn(18, dtype=torch.float64)
    P = matrix(model.project, 18, torch.float64)
    start = torch.cat([p.flatten() for p in network.parameters()])
    with torch.no_grad():
        model.theta_d.copy_(torch.linalg.solve(P, goal - start))
    weights = model.weights()
    torch.testing.assert_close(torch.cat([weights["weight"].flatten(), weights["bias"]]), goal)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def test_tied_parameters_are_projected_once() -> None:
    model = moved(SubspaceModel(Tied(), 6, "dense"))
    assert model.size == 28
    weights = model.weights()
    assert weights["embed.weight"] is weights["head.weight"]
    model(torch.tensor([1, 2])).sum().backward()
    assert model.theta_d.grad is not None
    x = torch.tensor([1, 2, 6])
    plain = model.materialize()
    assert plain.head.weight is plain.embed.weight
    torch.testing.assert_close(plain(x), model(x))
    shared = nn.Linear(3, 3)
    assert SubspaceModel(nn.Sequential(shared, nn.ReLU(), shared), 2).size == 12


def test_buffers_move_and_frozen_parameters_do_not() -> None:
    network = small()
    network[0].weight.requires_grad_(False)
    model = SubspaceModel(network, 5)
    assert model.size == 8 + 16 + 27
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    (model(torch.randn(9, 6) + 2).square().sum()).backward()
    optimizer.step()
    norm = model.model[1]
    assert norm.num_batches_tracked == 1
    assert (norm.running_mean != 0).all()
    assert (network[1].running_mean == 0).all()
    assert "0.weight" not in model.weights()
    assert torch.equal(model.model[0].weight, network[0].weight)
    assert not torch.equal(model.weights()["0.bias"], network[0].bias)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(4, 3, batch_first=True), lambda: nn.TransformerEncoderLayer(4, 2, 8)])
def test_layers_that_keep_lists_of_their_weights(make: Callable[[], nn.Module]) -> None:
    model = moved(SubspaceModel(make(), 10)).eval()
    x = torch.randn(2, 3, 4)

    def output(module: nn.Module) -> Tensor:
        out = module(x)
        return out[0] if isinstance(out, tuple) else out

    torch.testing.assert_close(output(model), output(model.materialize()))
    before = output(model)
    output(model.train()).square().sum().backward()
    assert model.theta_d.grad is not None
    assert model.theta_d.grad.abs().min() > 0
    with torch.no_grad():
        model.theta_d.add_(1)
        assert not torch.allclose(output(model.eval()), before, atol=1e-3)


def test_weights_of_eval_mode_are_kept_until_something_changes() -> None:
    model = moved(SubspaceModel(small(), 5)).eval()
    x = torch.randn(2, 6)
    with torch.no_grad():
        first = model.weights()["0.weight"]
        assert model.weights()["0.weight"] is first
        model.theta_d.mul_(2)
        assert model.weights()["0.weight"] is not first
        model.model[0].weight.add_(1)
        torch.testing.assert_close(model(x), model.materialize()(x))
        twin = copy.deepcopy(model)
        twin.theta_d.zero_()
        torch.testing.assert_close(twin(x), twin.materialize()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_brings_the_seed_along(kind: str, tmp_path: Path) -> None:
    model = moved(SubspaceModel(small(), 5, kind, seed=3)).eval()  # type: ignore[arg-type]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = SubspaceModel(small(), 5, kind, seed=99).eval()  # type: ignore[arg-type]
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = torch.randn(2, 6)
    assert other.seed == 3
    assert torch.equal(other(x), model(x))
    with torch.device("meta"):
        empty = SubspaceModel(small(), 5, kind, seed=3)  # type: ignore[arg-type]
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty.eval()(x), model(x))


def test_state_dict_of_another_projection_is_refused() -> None:
    model = SubspaceModel(small(), 5, "sparse")
    with pytest.raises(ValueError, match=r"projection='fastfood', per_layer=False, got projection='sparse'"):
        SubspaceModel(small(), 5).load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_round_the_weights(kind: str) -> None:
    model = moved(SubspaceModel(small(), 5, kind))  # type: ignore[arg-type]
    exact = model.weights()["0.weight"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.weights()["0.weight"], exact)
        output = model(torch.randn(8, 6))
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
    assert model.theta_d.grad is not None
    assert model.theta_d.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", ["fastfood", "sparse"])
def test_compiles_without_a_break(kind: str) -> None:
    model = moved(SubspaceModel(small(), 5, kind))  # type: ignore[arg-type]
    x = torch.randn(4, 6)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_draws_leave_torchs_generator_alone() -> None:
    network = small()
    state = torch.get_rng_state()
    for kind in KINDS:
        SubspaceModel(network, 5, kind)(torch.randn(2, 6, generator=torch.Generator()))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["fastfood", "sparse"])
def test_fit_trains_the_vector_alone(kind: str) -> None:
    splits = load("digits")
    network = MLP(64, (50,), 10)
    model = SubspaceModel(network, 200, kind)  # type: ignore[arg-type]
    start = [tensor.clone() for tensor in model._start()]
    fit(model, splits, Budget(epochs=4), settings=Settings(lr=0.1))
    assert evaluate(model, splits.val)["accuracy"] > 0.75
    assert all(torch.equal(a, b) for a, b in zip(start, model._start(), strict=True))


class TestCompressedFile:
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))

    @pytest.fixture
    def model(self) -> SubspaceModel:
        torch.manual_seed(5)
        model = moved(SubspaceModel(self.make(), 30, "sparse", seed=8, per_layer=True))
        model(3 + torch.randn(20, 200))
        return model.eval()

    def test_holds_seeds_and_the_vector(self, model: SubspaceModel, tmp_path: Path) -> None:
        path = tmp_path / "small.safetensors"
        save_compressed(model, path, self.make, 5)
        state = torch.get_rng_state()
        again = load_compressed(path, self.make).eval()
        assert torch.equal(torch.get_rng_state(), state)
        x = torch.randn(4, 200)
        assert torch.equal(again(x), model(x))
        assert (again.seed, again.projection, again.per_layer) == (8, "sparse", True)
        buffers = {name.removeprefix("buffers.") for name in load_file(path)} - {"theta_d"}
        assert buffers == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert path.stat().st_size < 0.03 * 4 * model.size

    def test_is_not_written_if_it_could_not_be_read(self, model: SubspaceModel, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="does not make the first weights of the model under init_seed=6"):
            save_compressed(model, tmp_path / "small.safetensors", self.make, 6)
        assert not (tmp_path / "small.safetensors").exists()

    def test_of_another_network_is_refused(self, model: SubspaceModel, tmp_path: Path) -> None:
        path = tmp_path / "small.safetensors"
        save_compressed(model, path, self.make, 5)

        def other() -> nn.Module:
            network = self.make()
            network[0].weight.data = network[0].weight.data.flip(0)
            return network

        for wrong in (other, lambda: nn.Linear(200, 100)):
            with pytest.raises(ValueError, match="model_fn does not make the network that was saved in"):
                load_compressed(path, wrong)
        save_file({"theta_d": torch.zeros(3)}, tmp_path / "plain.safetensors")
        with pytest.raises(ValueError, match=r"must have the format 'netwright-subspace-1', got None"):
            load_compressed(tmp_path / "plain.safetensors", self.make)
        (tmp_path / "text").write_text("no tensors")
        with pytest.raises(ValueError, match="is not a safetensors file"):
            load_compressed(tmp_path / "text", self.make)


def masked_like(layer: nn.Linear) -> nn.Linear:
    """A layer that reads its weight through a property, as pruning masks make it."""
    layer.__class__ = type("Masked", (nn.Linear,), {"weight": property(lambda self: self._parameters["weight"] * 1)})
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SubspaceModel(nn.Linear(2, 2), 7), r"dim must be in \[1, 6\], the number of trainable.* got 7"),
        (lambda: SubspaceModel(nn.Linear(2, 2), 0), r"dim must be in \[1, 6\], the number of trainable.* got 0"),
        (lambda: SubspaceModel(nn.Flatten(), 1), "found no trainable parameter, got a Flatten"),
        (lambda: SubspaceModel(nn.Linear(2, 2).requires_grad_(False), 1), "found no trainable parameter"),
        (lambda: SubspaceModel(nn.Linear(2, 2), 1, "fastfod"), "unknown projection 'fastfod'; did you mean 'fastfood'"),  # type: ignore[arg-type]
        (lambda: SubspaceModel(nn.Linear(2, 2), 1, seed=-1), "seed must be in"),
        (lambda: SubspaceModel(nn.Linear(2, 2, dtype=torch.cfloat), 1), "'weight' must be of a floating-point type"),
        (lambda: SubspaceModel(masked_like(nn.Linear(2, 2)), 1), "'weight' is not what its module reads.*mask"),
        (
            lambda: SubspaceModel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")), 1),
            "must be on one device, got cpu, meta",
        ),
        (lambda: fwht(torch.zeros(2, 12)), "the last dimension of x must be a power of two, got size 12"),
        (lambda: fwht(torch.zeros(2, 0)), "must be a power of two, got size 0"),
        (lambda: fwht(torch.tensor(1.0)), "must be a power of two, got size 0"),
        (lambda: fwht(torch.zeros(4, dtype=torch.int64)), "x must be of a floating-point type, got torch.int64"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_replaced_inside_of_a_subspace_are_noticed() -> None:
    model = SubspaceModel(small(), 5)
    model.model[0] = nn.Linear(6, 8)
    with pytest.raises(ValueError, match="layer '0' was replaced after the network was put into a subspace"):
        model.train()
