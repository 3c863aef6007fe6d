"""Hidden counterexamples: what is planted, what attacks find, what training hides, and how verifiers are scored."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netwright.checks import InputError
from netwright.models.vision.classic import MLP
from netwright.verify._hidden_training import hinge, triangle
from netwright.verify.bounds import Box, Relaxation, bound_verdicts, relu_relaxation
from netwright.verify.pgd import all_margins, margin, output_margins, pgd, strongest
from netwright.verify.property import one_class
from netwright.verify.soundness import (
    SCHEDULE,
    HiddenConfig,
    InstanceSet,
    attack_survivors,
    by_bounds,
    counterexamples,
    exactly,
    export_vnnlib,
    make_instances,
    readable,
    score_verifier,
    train_hidden,
)
from netwright.verify.soundness_models import ARCHITECTURES, BatchNormViT, architecture, cnn, mlp, vit
from netwright.verify.verdict import Verdict
from netwright.verify.vnnlib import read_vnnlib

SMALL = HiddenConfig(steps=4, window=3, restarts=3, attack_steps=2, test_every=2, schedule=((0.25, 0), (0.25, 3)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spike(instances: InstanceSet, width: float = 1e-3) -> nn.Module:
    """Of class 0, but within ``width`` of a planted point in the first entry: nothing leads there."""

    class Spike(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = ((x[:, None] - instances.x_cex.to(x)).abs().flatten(2).amax(2) < width).any(1)
            return torch.stack([1 - 2 * near.to(x), torch.zeros(len(x), dtype=x.dtype)], 1)

    return Spike()


def of_class_0(instances: InstanceSet) -> InstanceSet:
    return InstanceSet(
        instances.x,
        torch.zeros_like(instances.y),
        torch.ones_like(instances.y),
        instances.x_cex,
        instances.x_clean,
        torch.zeros_like(instances.y),
        instances.radius,
        instances.data_range,
    )


# --- instances


@given(
    seed=st.integers(0, 2**31),
    epsilon=st.floats(0.02, 0.6),
    num=st.integers(1, 6),
    data_range=st.sampled_from([0.1, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_law_of_the_instances(seed: int, epsilon: float, num: int, data_range: float, dtype: torch.dtype) -> None:
    made = make_instances((3, 4), epsilon, num, data_range, seeded(seed), dtype=dtype)
    radius = epsilon * data_range
    assert made.radius == radius
    assert made.x.shape == made.x_cex.shape == made.x_clean.shape == (num, 3, 4)
    assert made.x.dtype == made.x_cex.dtype == made.x_clean.dtype == dtype
    assert set(torch.cat([made.y, made.y_clean]).tolist()) <= {0, 1}
    assert torch.equal(made.target, 1 - made.y)
    for inputs in (made.x, made.x_cex, made.x_clean):
        assert float(inputs.abs().max()) <= torch.tensor(data_range, dtype=dtype)
    # inside of the box to the last bit, in the type of the inputs
    for points, box in ((made.x_cex, made.box), (made.x, made.box), (made.x_clean, made.clean_box)):
        assert bool(((points >= box.lower) & (points <= box.upper)).all())
    # at its border in an entry, or where the range of the data cuts it
    moved = (made.x_cex - made.x).abs()
    cut = made.x_cex.abs() >= data_range * (1 - 1e-6)
    assert bool(((moved >= 0.9799 * radius) | cut).flatten(1).any(1).all())
    # all others share one small value
    small = ((made.x_cex - made.x) * (moved < 0.9799 * radius) * ~cut).flatten(1)
    assert float(small.abs().max()) <= data_range / 100 * (1 + 1e-4)
    for row in small:
        values = row[row != 0]
        assert not len(values) or float(values.max() - values.min()) <= 1e-6 * data_range
    bases = torch.cat([made.x, made.x_clean]).flatten(1)
    apart = (bases[:, None] - bases).abs().amax(2) + torch.eye(2 * num) * 9
    assert float(apart.min()) > 2 * radius
    others = (bases[:, None] - made.x_cex.flatten(1)).abs().amax(2)
    others[torch.arange(num), torch.arange(num)] = 9
    assert float(others.min()) > 2 * radius


def test_the_generator_decides_and_torchs_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (make_instances((10,), 0.5, 3, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.x_cex, again.x_cex)
    assert not torch.equal(first.x_cex, other.x_cex)


@pytest.mark.parametrize("epsilon", [1.0, 1.5, 0.0, -0.1])
def test_balls_that_cannot_be_disjoint(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"above 0 and below data_range = 0\.1, got"):
        make_instances((10,), epsilon)


def test_bad_numbers_of_instances() -> None:
    with pytest.raises(InputError, match="num must be at least 1, got 0"):
        make_instances((10,), 0.5, 0)
    with pytest.raises(InputError, match="data_range must be positive"):
        make_instances((10,), 0.5, data_range=0.0)
    with pytest.raises(RuntimeError, match=r"200 inputs in a row overlapped with the \d balls"):
        make_instances((1,), 0.5, most_rejected=200)
    made = make_instances((4,), 0.5, 2)
    with pytest.raises(InputError, match="must lie within the balls"):
        InstanceSet(made.x, made.y, made.target, made.x + 0.2, made.x_clean, made.y_clean, made.radius, 0.1)
    with pytest.raises(InputError, match="dimension 0 of mask must have size 2"):
        made.keep(torch.ones(3, dtype=torch.bool))


# --- attacks


def test_all_restarts_of_a_sample_are_restarts_of_pgd() -> None:
    """One restart whose last iterate is the worst: the same as pgd from the same start."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3).double(), torch.randn(5, 6).double(), torch.arange(5) % 3
    found = strongest(model, x, y, 0.3, 0.05, 20, loss=margin, generator=seeded(3))
    other = pgd(model, x, y, 0.3, 0.05, 20, loss=margin, generator=seeded(3))
    torch.testing.assert_close(found.margin, output_margins(model(found.x), y))
    assert bool((found.margin >= output_margins(model(other), y) - 1e-12).all())


def test_the_strongest_is_the_best_of_restarts_and_iterates() -> None:
    torch.manual_seed(0)
    model, x, y = MLP(4, (16,), 2), torch.rand(3, 4), torch.tensor([0, 1, 0])
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, inputs, outputs: seen.append(outputs.detach()))
    found = strongest(model, x, y, 0.2, 0.1, 5, restarts=7, lo=0.0, hi=1.0, generator=seeded(0))
    hook.remove()
    margins = torch.stack([output_margins(out, y.repeat_interleave(7)).view(3, 7) for out in seen])
    torch.testing.assert_close(found.margin, margins.amax((0, 2)))
    torch.testing.assert_close(found.margin, output_margins(model(found.x).detach(), y))
    assert len(seen) == 6
    assert bool(((found.x - x).abs() <= 0.2 + 1e-6).all())
    assert 0 <= found.x.min() <= found.x.max() <= 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_margins_and_their_sum() -> None:
    outputs, y = torch.tensor([[1.0, 3.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 1])
    torch.testing.assert_close(output_margins(outputs, y), torch.tensor([2.0, -4.0]))
    torch.testing.assert_close(all_margins(outputs, y), torch.tensor(2.0 + 1 - 5 - 4))
    assert output_margins(torch.full((2, 2), torch.nan), y).tolist() == [torch.inf] * 2
    assert torch.autograd.gradcheck(all_margins, (outputs.double().requires_grad_(), y))


def test_bad_attacks() -> None:
    x, y = torch.rand(3, 4), torch.zeros(3, dtype=torch.long)
    with pytest.raises(InputError, match="restarts must be at least 1"):
        strongest(nn.Linear(4, 2), x, y, 0.1, 0.1, restarts=0)
    with pytest.raises(InputError, match=r"outputs \(batch, classes\) with two classes or more, got \(3, 1\)"):
        strongest(nn.Linear(4, 1), x, y, 0.1, 0.1)
    with pytest.raises(InputError, match="labels must be from 0 to 1"):
        strongest(nn.Linear(4, 2), x, y + 2, 0.1, 0.1)
    with pytest.raises(InputError, match="both ends must have one shape"):
        one_class(torch.zeros(2), torch.zeros(3), 0, 2)


def test_survivors_are_right_at_the_input_wrong_at_the_planted_point_and_missed() -> None:
    made = of_class_0(make_instances((10,), 0.5, 4, generator=seeded(0)))
    schedule = ((0.25, 0), (0.25, 4))
    hidden = spike(made)
    # a network without gradient, wrong in a tiny place only: attacks cannot find it
    hidden.register_parameter("weight", nn.Parameter(torch.zeros(())))
    with pytest.raises(RuntimeError, match="grad"):
        attack_survivors(hidden, made, ((0.25, 4),), restarts=2)
    assert attack_survivors(hidden, made, ((0.25, 0),), restarts=50).all()
    flat = nn.Linear(10, 2)
    nn.init.zeros_(flat.weight)
    flat.bias.data = torch.tensor([1.0, 0.0])
    assert not attack_survivors(flat, made, schedule, restarts=2).any()  # right at the planted points, too
    flat.bias.data = torch.tensor([0.0, 1.0])
    assert not attack_survivors(flat, made, schedule, restarts=2).any()  # wrong at the inputs
    assert counterexamples(flat, made).all()
    # wrong at the planted point, and on half of the ball
    one = of_class_0(make_instances((10,), 0.5, 1, generator=seeded(1)))
    towards = one.x_cex[0] - one.x[0]
    plane = nn.Linear(10, 2, bias=False)
    plane.weight.data = torch.stack([-towards, towards])
    plane.bias = nn.Parameter(torch.tensor([1.0, -1.0]) * (towards @ (one.x[0] + towards / 2)))
    assert counterexamples(plane, one).all()
    assert not attack_survivors(plane, one, ((0.25, 10),), restarts=2).any()


def test_attacks_of_others_count_within_the_box() -> None:
    made = of_class_0(make_instances((10,), 0.5, 3, generator=seeded(0)))
    hidden = spike(made)
    weak = ((0.25, 0),)
    asked = attack_survivors(hidden, made, weak, restarts=5, others=[lambda model, x, y, box: made.x_cex])
    assert not asked.any()
    outside = attack_survivors(hidden, made, weak, restarts=5, others=[lambda model, x, y, box: made.x_cex + 1])
    assert outside.all()
    with pytest.raises(InputError, match=r"an attack must give inputs of shape \(3, 10\)"):
        attack_survivors(hidden, made, weak, restarts=5, others=[lambda model, x, y, box: x[:1]])


def test_the_published_schedule() -> None:
    assert SCHEDULE[0] == (0.25, 0)
    assert SCHEDULE[-1] == (0.01, 5000)
    assert sum(steps for _, steps in SCHEDULE) == 9950


# --- training


def test_the_numbers_of_the_paper() -> None:
    config = HiddenConfig()
    assert (config.window, config.restarts, config.attack_steps, config.steps) == (300, 75, 75, 10_000)
    assert (config.attack_step, config.margin, config.lr, config.clip) == (0.1, 0.01, 1e-3, 10.0)
    assert [triangle(at, 0.4) for at in (0, 0.2, 0.4, 0.7, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_hinge_asks_for_the_margin() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.005]])
    y, target = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    torch.testing.assert_close(hinge(outputs, y, target, 0.01), torch.tensor((1.01 + 0 + 0.005) / 3))


def test_training_learns_from_the_window_and_is_repeatable() -> None:
    made = make_instances((6,), 0.3, 2, generator=seeded(0))
    sizes: list[int] = []
    reports, weights = [], []
    for window in (3, 3, 1):
        torch.manual_seed(0)
        model = MLP(6, (8,), 2).eval()
        sizes.clear()
        hook = model.register_forward_hook(lambda m, i, o: sizes.append(len(o)) if m.training else None)
        state = torch.get_rng_state()
        config = HiddenConfig(steps=5, window=window, restarts=3, attack_steps=2, test_every=2, schedule=((0.25, 2),))
        shares: list[float] = []
        reports.append(train_hidden(model, made, config, generator=seeded(1), observer=shares.append))
        hook.remove()
        assert torch.equal(torch.get_rng_state(), state)
        assert not model.training
        assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert sizes[::2] == [4 * min(step, window) for step in range(1, 6)]  # all inputs, each time of the window
        assert sizes[1::2] == [2] * 5  # the planted points
        weights.append(model[1].weight.detach().clone())
    assert [progress.step for progress in reports[0].history] == [2, 4, 5]
    assert reports[0].history == reports[1].history
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_plants_and_keeps_the_best_weights() -> None:
    torch.manual_seed(0)
    made = make_instances((8,), 0.5, 2, generator=seeded(0))
    model = MLP(8, (32,), 2)
    config = HiddenConfig(steps=60, window=5, restarts=2, attack_steps=1, lr=1e-2, test_every=20, schedule=((0.25, 1),))
    report = train_hidden(model, made, config)
    assert counterexamples(model, made).all()
    assert report.history[-1].planted_loss < 0.01
    best = max(progress.survivors for progress in report.history)
    (kept,) = (progress for progress in report.history if progress.step == report.step)
    assert kept.survivors == best == int(report.survivors.sum())


def test_bad_training() -> None:
    made = make_instances((4,), 0.5, 1)
    with pytest.raises(InputError, match=r"outputs \(batch, classes\)"):
        train_hidden(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2))), made, SMALL)
    with pytest.raises(InputError, match="parameters that can be trained"):
        train_hidden(nn.Flatten(), made, SMALL)
    for name, value, message in (
        ("steps", 0, "steps must be at least 1"),
        ("window", 0, "window must be at least 1"),
        ("attack_step", 0.0, "attack_step must be positive"),
        ("margin", -1.0, "margin must be at least 0"),
        ("peak", 0.0, r"peak must be in \(0, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            HiddenConfig(**{name: value})


# --- scores


def wrong_intercept(lower: Tensor, upper: Tensor) -> Relaxation:
    lines = relu_relaxation(lower, upper)
    return lines._replace(upper_shift=-lines.upper_shift)


@pytest.fixture(scope="module")
def planted() -> tuple[nn.Module, InstanceSet]:
    torch.manual_seed(0)
    made = make_instances((8,), 0.5, 3, generator=seeded(4))
    model = MLP(8, (24, 24), 2)
    config = HiddenConfig(
        steps=150, window=10, restarts=3, attack_steps=2, lr=1e-2, test_every=150, schedule=((0.25, 1),)
    )
    train_hidden(model, made, config)
    assert counterexamples(model, made).all()
    return model.eval(), made


def test_sound_verifiers_pass_and_a_broken_one_is_caught(planted: tuple[nn.Module, InstanceSet]) -> None:
    model, made = planted
    for verifier in (by_bounds("ibp"), by_bounds("crown"), by_bounds("crown-ibp"), bound_verdicts, exactly(5.0)):
        report = score_verifier(verifier, model, made)
        assert report.sound
        assert report.wrong == ()
        assert report.unverifiable_verified == 0
        assert (report.unverifiable, report.clean) == (3, 3)
    assert score_verifier(exactly(20.0), model, made).unverifiable_falsified == 3
    broken = score_verifier(by_bounds("crown", wrong_intercept), model, made)
    assert not broken.sound
    assert len(broken.wrong) == broken.unverifiable_verified > 0


def test_all_four_counts() -> None:
    made = of_class_0(make_instances((10,), 0.5, 4, generator=seeded(0)))
    answers = {0: ["holds", "violated", "unknown", "holds"], 1: ["violated", "violated", "holds", "unknown"]}
    calls: list[Box] = []

    def verifier(model: nn.Module, box: Box, labels: Tensor) -> Sequence[str]:
        calls.append(box)
        return answers[len(calls) - 1]

    report = score_verifier(verifier, spike(made), made)
    assert (report.unverifiable_verified, report.unverifiable_falsified, report.unverifiable) == (2, 1, 4)
    assert (report.clean_verified, report.clean_falsified, report.clean) == (1, 2, 4)
    assert report.wrong == (0, 3)
    assert torch.equal(calls[0].lower, made.box.lower)
    assert torch.equal(calls[1].upper, made.clean_box.upper)


def test_planted_points_that_the_network_gets_right_are_not_asked_about() -> None:
    made = of_class_0(make_instances((10,), 0.5, 4, generator=seeded(0)))
    half = spike(made.keep(torch.tensor([True, False, False, True])))
    report = score_verifier(lambda model, box, labels: [Verdict.HOLDS] * len(labels), half, made)
    assert report.unverifiable == 2
    assert report.wrong == (0, 3)
    with pytest.raises(InputError, match="none of the 2 planted points is a counterexample"):
        score_verifier(bound_verdicts, half, made.keep(torch.tensor([False, True, True, False])))


def test_answers_that_are_none() -> None:
    made = of_class_0(make_instances((10,), 0.5, 2, generator=seeded(0)))
    model = spike(made)
    for answer in ("verified", True, None, 1):
        with pytest.raises(ValueError, match="must answer holds, violated, unknown, got"):
            score_verifier(lambda model, box, labels, answer=answer: [answer] * 2, model, made)
    with pytest.raises(ValueError, match="for each of 2 boxes, got 1 answers"):
        score_verifier(lambda model, box, labels: ["holds"], model, made)


@pytest.mark.parametrize("name", ["vit", "cnn-tanh", "cnn-sigmoid"])
def test_of_networks_that_cannot_be_read_nothing_is_said(name: str) -> None:
    torch.manual_seed(0)
    model = architecture(name).eval()
    made = of_class_0(make_instances((1, 5, 5), 0.2, 2, generator=seeded(0)))
    with torch.no_grad():
        next(layer for layer in reversed(list(model.modules())) if isinstance(layer, nn.Linear)).bias.copy_(
            torch.tensor([-9.0, 9.0])
        )
    assert counterexamples(model, made).all()
    assert not readable(model, (1, 5, 5))
    for verifier in (by_bounds("both"), exactly(1.0)):
        report = score_verifier(verifier, model, made)
        assert (report.unverifiable, report.clean) == (2, 2)
        assert report.unverifiable_verified == report.unverifiable_falsified == 0
        assert report.clean_verified == report.clean_falsified == 0


def test_scoring_leaves_the_network_alone(planted: tuple[nn.Module, InstanceSet]) -> None:
    model, made = planted
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    score_verifier(by_bounds("both"), model, made)
    attack_survivors(model, made, ((0.25, 2),), restarts=2)
    assert model.training
    model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# --- files


def test_export_in_the_form_of_the_competition(planted: tuple[nn.Module, InstanceSet], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnx_files = pytest.importorskip("netwright.verify.onnx_files")
    model, made = planted
    files = export_vnnlib(model, made, tmp_path / "bench", timeout=20)
    found = onnx_files.read_onnx(tmp_path / "bench" / "model.onnx")
    assert found.input_shape == (8,)
    with torch.no_grad():
        torch.testing.assert_close(found.module(made.x), model(made.x))
    rows = list(csv.reader((tmp_path / "bench" / "instances.csv").read_text().splitlines()))
    assert rows == [["model.onnx", f"vnnlib/{number}.vnnlib", "20"] for number in range(6)]
    assert len(files) == 6
    with torch.no_grad():
        outputs = model(made.x_cex)
    for number, file in enumerate(files):
        prop = read_vnnlib(file)
        assert (prop.inputs, prop.outputs) == (8, 2)
        told = tmp_path / "bench" / "counterexamples" / f"{number}.txt"
        assert told.exists() == (number < 3)
        if number < 3:
            assert told.read_text().startswith("sat\n((X_0 ")
            assert bool(prop.violated_by(made.x_cex[number : number + 1], outputs[number : number + 1]).all())


def test_bad_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_instances((4,), 0.5, 1)
    with pytest.raises(InputError, match="timeout must be positive"):
        export_vnnlib(nn.Linear(4, 2), made, tmp_path, timeout=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript"):
        export_vnnlib(nn.Linear(4, 2), made, tmp_path)


# --- architectures


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_published_counts() -> None:
    with torch.device("meta"):
        assert count(cnn(1, 1, 5)) == 353_262
        assert count(cnn(1, 3, 5)) == 353_442
        assert count(cnn(3, 1, 5)) == 605_492
        assert count(mlp(4)) == 2_124_162
        assert count(mlp(5)) == 2_124_162 + 1000 * 1001
        assert count(cnn(1, pool=True)) == 353_262
        assert count(cnn(2)) == 353_262 - 100 + 50 + 460
        dim = 16
        block = 2 * 2 * dim + 4 * dim * (dim + 1) + dim * 32 + 32 + 32 * dim + dim
        assert count(vit()) == (dim + dim) + dim + 26 * dim + 2 * block + 2 * dim + 2 * dim + 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_nine_architectures(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 10) if name.startswith("mlp") else torch.rand(3, 3, 5, 5)
    channels = 1 if name.startswith("mlp") else 3
    model = architecture(name, channels).eval()
    outputs = model(x)
    assert outputs.shape == (3, 2)
    assert readable(model, tuple(x.shape[1:])) == (name not in ("vit", "cnn-tanh", "cnn-sigmoid"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_the_transformer_normalises_over_the_batch_and_has_gradients() -> None:
    torch.manual_seed(0)
    model = BatchNormViT(3, dim=4, depth=1).double()
    x = torch.rand(4, 1, 3, 3, dtype=torch.float64)
    model(x)
    model.eval()
    assert torch.autograd.gradcheck(model, x.requires_grad_())
    # in eval mode samples do not see each other, in training they do
    torch.testing.assert_close(model(x)[:2], model(x[:2]))
    model.train()
    assert not torch.allclose(model(x)[:2], model(x[:2]))
    copy = BatchNormViT(3, dim=4, depth=1).double()
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy.eval()(x), model.eval()(x))
    torch.compile(copy, backend="eager", fullgraph=True)(x)


def test_bad_architectures() -> None:
    with pytest.raises(InputError, match="did you mean 'cnn-tanh'"):
        architecture("cnn-tan")
    with pytest.raises(InputError, match="unknown number of convolutions '4'"):
        cnn(4)
    with pytest.raises(InputError, match="hidden must be at least 2"):
        mlp(1)
