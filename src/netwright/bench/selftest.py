"""Try the verifiers themselves: on a network that is wrong at inputs that we know and attacks miss (SoundnessBench)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from rich import box
from rich.console import Console
from rich.progress import TaskProgressColumn
from rich.table import Table
from torch import Tensor, nn

from netwright import checks
from netwright.bench.pages import COLOURS, picture, styled, write_page
from netwright.bench.progress import progress_bar
from netwright.models.vision.classic import MLP
from netwright.verify.bounds import Relaxation, relu_relaxation
from netwright.verify.soundness import (
    SCHEDULE,
    HiddenConfig,
    InstanceSet,
    SoundnessReport,
    Verifier,
    attack_survivors,
    by_bounds,
    counterexamples,
    exactly,
    make_instances,
    score_verifier,
    train_hidden,
)

INSTANCES = 3
_SHAPE, _EPSILON, _HIDDEN = (1, 5, 5), 0.2, (100, 50)
_TRAINING = HiddenConfig(
    steps=800, window=100, restarts=6, attack_steps=25, lr=5e-3, test_every=200, schedule=SCHEDULE[:4]
)
_RESTARTS = 50  # of the attacks that count what is missed
_EXACT_SECONDS = 3.0  # for each instance
_TRAINING_SHARE = 0.6


@dataclass(frozen=True)
class Score:
    """How one verifier did on one network.

    Attributes:
        verifier: Its name.
        network: The network's.
        report: What it answered.
        seconds: For all instances.
        control: Whether it has a bug on purpose, to see that the test catches it.
    """

    verifier: str
    network: str
    report: SoundnessReport
    seconds: float
    control: bool = False


@dataclass(frozen=True, eq=False)
class Selftest:
    """What came of the test.

    Attributes:
        scores: All verifiers on all networks.
        survivors: Which planted instances ``(num,)`` the attacks did not find.
        ways: Margin of the right class on the way from each input to its planted point ``(num, points)``.
        seconds: Wall time of everything.
    """

    scores: tuple[Score, ...]
    survivors: Tensor
    ways: Tensor
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether no verifier called a planted instance verified; those with a bug on purpose do not count."""
        return all(score.report.sound for score in self.scores if not score.control)

    @property
    def caught(self) -> bool:
        """Whether the test caught every verifier that has a bug on purpose."""
        return all(not score.report.sound for score in self.scores if score.control)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if not self.sound:
            names = {score.verifier for score in self.scores if not score.control and not score.report.sound}
            return f"UNSOUND: {', '.join(sorted(names))} called verified what has a counterexample; do not trust it"
        if not self.caught:
            return "not conclusive: the verifier with a bug was not caught; try another --seed"
        return "passed: no verifier called verified what has a counterexample, and the one with a bug was caught"

    def table(self) -> Table:
        """The scores, for a terminal."""
        shown = Table(box=box.SIMPLE_HEAD, caption="instances: verified · falsified · unknown")
        shown.add_column("verifier", overflow="fold")
        shown.add_column("network", no_wrap=True)
        for kind in ("planted", "clean"):
            shown.add_column(kind, justify="right", no_wrap=True)
        shown.add_column("seconds", justify="right")
        for score in self.scores:
            numbers = counts(score.report)
            planted, clean = (" · ".join(map(str, part)) for part in (numbers[:3], numbers[3:]))
            if numbers[0]:
                planted = f"[yellow]caught: {planted}[/]" if score.control else f"[red]UNSOUND: {planted}[/]"
            shown.add_row(score.verifier, score.network, planted, clean, f"{score.seconds:.1f}")
        return shown

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "sound": self.sound,
            "control_caught": self.caught,
            "verdict": self.verdict,
            "planted": len(self.survivors),
            "missed_by_attacks": int(self.survivors.sum()),
            "seconds": self.seconds,
            "scores": [
                {
                    "verifier": score.verifier,
                    "network": score.network,
                    "control": score.control,
                    "seconds": score.seconds,
                    **asdict(score.report),
                }
                for score in self.scores
            ],
        }


def counts(report: SoundnessReport) -> tuple[int, int, int, int, int, int]:
    """Planted instances verified, falsified and unknown, then clean ones."""
    planted = (report.unverifiable_verified, report.unverifiable_falsified)
    clean = (report.clean_verified, report.clean_falsified)
    return (*planted, report.unverifiable - sum(planted), *clean, report.clean - sum(clean))


def broken_relaxation(lower: Tensor, upper: Tensor) -> Relaxation:
    """CROWN's lines with one mistake: the upper line of an open ReLU has the wrong sign of its intercept."""
    lines = relu_relaxation(lower, upper)
    return lines._replace(upper_shift=-lines.upper_shift)


def own_verifiers() -> dict[str, Verifier]:
    """The verifiers of this package, by name."""
    return {
        "intervals": by_bounds("ibp"),
        "CROWN-IBP": by_bounds("crown-ibp"),
        "CROWN": by_bounds("crown"),
        "both": by_bounds("both"),
        "exact": exactly(_EXACT_SECONDS),
    }


def selftest(
    *,
    seed: int = 0,
    training: HiddenConfig = _TRAINING,
    verifiers: dict[str, Verifier] | None = None,
    console: Console | None = None,
) -> Selftest:
    """Make instances, train a network to hide their counterexamples, and ask all verifiers about them.

    Two networks are asked about that compute the same: linear layers as trained, and the first of them written as a
    convolution with batch normalisation. torch's random state is left as it was.

    Args:
        seed: Decides instances and first weights.
        training: How to train.
        verifiers: Whom to ask; those of this package if not given.
        console: Where progress is shown; nowhere if not given.

    Raises:
        RuntimeError: If training ended with no planted point that the network gets wrong.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    instances = make_instances(_SHAPE, _EPSILON, INSTANCES, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(instances.x[0].numel(), _HIDDEN, 2)
    own = own_verifiers() if verifiers is None else verifiers
    asked = [(name, verifier, False) for name, verifier in own.items()]
    asked.append(("CROWN with a bug", by_bounds("crown", broken_relaxation), True))
    scores: list[Score] = []
    with _progress(console) as advance:
        advance("training a network that hides counterexamples", 0.0)
        train_hidden(
            model, instances, training, generator=generator,
            observer=lambda share: advance("training a network that hides counterexamples", share * _TRAINING_SHARE),
        )  # fmt: skip
        model.eval()
        if not bool(counterexamples(model, instances).any()):
            raise RuntimeError(
                "training did not plant a counterexample, so there is nothing to test with: another seed"
            )
        advance("attacking it", _TRAINING_SHARE)
        survivors = attack_survivors(model, instances, training.schedule, restarts=_RESTARTS, generator=generator)
        networks = {"linear": model, "convolution": as_convolution(model)}
        for name, verifier, control in asked:
            for network, version in networks.items():
                share = len(scores) / (len(asked) * len(networks))
                advance(f"{name}, {network}", _TRAINING_SHARE + (1 - _TRAINING_SHARE) * share)
                begun = time.perf_counter()
                answers = score_verifier(verifier, version, instances)
                scores.append(Score(name, network, answers, time.perf_counter() - begun, control))
    seconds = time.perf_counter() - start
    return Selftest(tuple(scores), survivors, _ways(model, instances), seconds)


def as_convolution(model: MLP) -> nn.Sequential:
    """The same function for pictures 1×5×5, its first layer as a convolution with batch normalisation."""
    first = model[1]
    if not isinstance(first, nn.Linear):
        raise checks.InputError("the first layer after Flatten must be linear")
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv2d(_SHAPE[0], first.out_features, _SHAPE[1:]).to(first.weight)
    norm = nn.BatchNorm2d(first.out_features).to(first.weight)
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert convolution.bias is not None
        norm.running_mean.copy_(torch.linspace(-1, 1, first.out_features))
        norm.running_var.copy_(torch.linspace(0.5, 2, first.out_features))
        # undone beforehand, so that both together are the linear layer
        scale = (norm.running_var + norm.eps).sqrt()
        convolution.weight.copy_((first.weight * scale[:, None]).view_as(convolution.weight))
        convolution.bias.copy_(first.bias * scale + norm.running_mean)
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), *list(model)[3:]).eval()


def write_report(found: Selftest, path: Path, *, command: str) -> None:
    """One HTML page: the scores, and what hidden counterexamples look like."""
    rows = [(score, counts(score.report)) for score in found.scores]
    write_page(path, "selftest.html.j2", found=found, rows=rows, plots=[picture(_plot(found))], command=command)


def _plot(found: Selftest) -> go.Figure:
    figure = go.Figure()
    places = torch.linspace(0, 1, found.ways.shape[1]).tolist()
    for number, (way, survived) in enumerate(zip(found.ways.tolist(), found.survivors.tolist(), strict=True)):
        name = f"input {number}, {'missed' if survived else 'found'} by attacks"
        figure.add_scatter(x=places, y=way, name=name, line={"color": COLOURS[number % len(COLOURS)]})
    figure.add_hline(y=0, line={"dash": "dot", "color": "gray"})
    return styled(
        figure,
        "From an input to its planted counterexample: below 0 the network is wrong",
        "part of the way",
        "margin of the right class",
    )


def _ways(model: nn.Module, instances: InstanceSet, points: int = 201) -> Tensor:
    places = torch.linspace(0, 1, points).view(1, points, *[1] * (instances.x.ndim - 1))
    between = instances.x[:, None] + places * (instances.x_cex - instances.x)[:, None]
    with torch.no_grad():
        outputs = model(between.flatten(0, 1)).view(len(instances.x), points, 2)
    right = instances.y[:, None].expand(-1, points)[..., None]
    ways: Tensor = (outputs.gather(2, right) - outputs.gather(2, 1 - right))[..., 0]
    return ways


@contextmanager
def _progress(console: Console | None) -> Iterator[Callable[[str, float], None]]:
    with progress_bar(console, TaskProgressColumn()) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


__all__ = [
    "INSTANCES",
    "Score",
    "Selftest",
    "as_convolution",
    "broken_relaxation",
    "counts",
    "own_verifiers",
    "selftest",
    "write_report",
]
