"""SoundnessBench: can a verifier be trusted? Networks that hide a known counterexample from attacks (Zhou et al. 2024).

:func:`make_instances` plants a counterexample near each of some random inputs; :func:`train_hidden` trains a network to
be wrong there and right wherever attacks look; :func:`attack_survivors` says which instances the strongest attacks
miss. A verifier that calls one of them verified is unsound, and :func:`score_verifier` counts that.
"""

import copy
import csv
import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.surgery import eval_mode
from netwright.verify._hidden_training import HiddenConfig, Progress, TrainReport, train_hidden
from netwright.verify._network import read_network
from netwright.verify._planted import (
    SCHEDULE,
    Attack,
    InstanceSet,
    attack_survivors,
    counterexamples,
    make_instances,
)
from netwright.verify.bounds import Box, Method, Relaxation, bound_verdicts, relu_relaxation
from netwright.verify.decide import decide
from netwright.verify.property import one_class
from netwright.verify.verdict import Verdict
from netwright.verify.vnnlib import result_text, write_vnnlib

# verifier(model, box, labels) answers for each box: has every input in it the class?
Verifier = Callable[[nn.Module, Box, Tensor], Sequence[Verdict | str]]


@dataclass(frozen=True)
class SoundnessReport:
    """How often a verifier answered what.

    Attributes:
        clean_verified: Clean instances that it called verified.
        clean_falsified: Clean instances that it called violated.
        unverifiable_verified: Planted instances that it called verified: each is proof that it is unsound.
        unverifiable_falsified: Planted instances that it called violated, as they are.
        clean: How many clean instances it was asked about.
        unverifiable: How many planted ones.
        wrong: Numbers of the planted instances that it called verified.
    """

    clean_verified: int
    clean_falsified: int
    unverifiable_verified: int
    unverifiable_falsified: int
    clean: int
    unverifiable: int
    wrong: tuple[int, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether no planted instance was called verified. That is no proof of soundness: it is a test passed."""
        return self.unverifiable_verified == 0


def score_verifier(verify_fn: Verifier, model: nn.Module, instances: InstanceSet) -> SoundnessReport:
    """Ask a verifier about all instances, those without a counterexample and those with one that we know.

    Planted points that the network does not get wrong by 1e-6 are left out: what is asked about them may be true.

    Args:
        verify_fn: ``verify_fn(model, box, labels)`` with boxes ``(batch, *shape)`` and ``labels`` ``(batch,)`` gives a
            :class:`~netwright.verify.verdict.Verdict` (or its value: ``"holds"``, ``"violated"``, ``"unknown"``) for
            each box; such as :func:`~netwright.verify.bounds.bound_verdicts`, :func:`by_bounds`, :func:`exactly`.
        model: The network, mostly from :func:`train_hidden`.
        instances: What it was trained on; ``instances.keep(survivors)`` for those alone that attacks miss.

    Raises:
        InputError: If no planted point is a counterexample of this network, or the verifier's answers are not one
            verdict for each box.

    Source:
        Zhou et al. 2024, arXiv:2412.03154, section 4.

    Example:
        >>> planted = make_instances((10,), 0.5, num=2)
        >>> model = nn.Linear(10, 2, bias=False)
        >>> with torch.no_grad():  # of the class of the first planted counterexample everywhere
        ...     _ = model.weight.zero_()
        ...     model.bias = nn.Parameter(nn.functional.one_hot(planted.target[0], 2).float())
        >>> score_verifier(lambda model, box, labels: ["holds"] * len(labels), model, planted).sound
        False
        >>> score_verifier(bound_verdicts, model, planted).sound
        True
    """
    device = next((parameter.device for parameter in model.parameters()), instances.x.device)
    instances = instances.to(device)
    planted = counterexamples(model, instances)
    numbers = planted.nonzero().flatten().tolist()
    if not numbers:
        raise checks.InputError(
            f"none of the {len(planted)} planted points is a counterexample of this network: train it with train_hidden"
        )
    kept = instances.keep(planted)
    asked = _answers(verify_fn, model, kept.box, kept.y)
    clean = _answers(verify_fn, model, instances.clean_box, instances.y_clean)
    wrong = tuple(number for number, answer in zip(numbers, asked, strict=True) if answer is Verdict.HOLDS)
    return SoundnessReport(
        clean_verified=clean.count(Verdict.HOLDS),
        clean_falsified=clean.count(Verdict.VIOLATED),
        unverifiable_verified=len(wrong),
        unverifiable_falsified=asked.count(Verdict.VIOLATED),
        clean=len(clean),
        unverifiable=len(asked),
        wrong=wrong,
    )


def by_bounds(
    method: Method = "both", relaxation: Callable[[Tensor, Tensor], Relaxation] = relu_relaxation
) -> Verifier:
    """The verifier that bounds the outputs, see :func:`~netwright.verify.bounds.bound_verdicts`.

    Of a network that cannot be read, such as a transformer, it says that it does not know.

    Example:
        >>> box = Box(torch.full((1, 1, 5, 5), -0.1), torch.full((1, 1, 5, 5), 0.1))
        >>> from netwright.verify.soundness_models import vit
        >>> [str(verdict) for verdict in by_bounds("crown")(vit(), box, torch.tensor([0]))]
        ['unknown']
    """

    def verify(model: nn.Module, box: Box, labels: Tensor) -> Sequence[Verdict]:
        if not readable(model, tuple(box.lower.shape[1:])):
            return [Verdict.UNKNOWN] * len(labels)
        return bound_verdicts(model, box, labels, method=method, relaxation=relaxation)

    return verify


def exactly(time_limit: float | None = None, observer: Callable[[float], None] | None = None) -> Verifier:
    """The verifier that decides by attack, bounds and an integer program, see :func:`~netwright.verify.decide.decide`.

    Args:
        time_limit: In seconds, for each box; no limit if not given.
        observer: Called with the number of boxes that are done.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> box = Box(torch.tensor([[0.9, 0.0], [0.5, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.6]]))
        >>> [str(verdict) for verdict in exactly()(model, box, torch.tensor([0, 0]))]
        ['holds', 'violated']
    """

    def verify(model: nn.Module, box: Box, labels: Tensor) -> Sequence[Verdict]:
        shape = tuple(box.lower.shape[1:])
        found = []
        known = readable(model, shape)
        for number, (lower, upper, label) in enumerate(zip(*box, labels.tolist(), strict=True)):
            verdict = Verdict.UNKNOWN
            if known:
                prop = one_class(lower, upper, label, read_network(model, shape).outputs)
                verdict = decide(model, prop, shape, time_limit=time_limit).verdict
            found.append(verdict)
            if observer is not None:
                observer(number + 1)
        return found

    return verify


def readable(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether the bounds and the exact solver of this package know all layers of a network."""
    try:
        read_network(model, input_shape)
    except checks.InputError:
        return False
    return True


def export_vnnlib(
    model: nn.Module, instances: InstanceSet, folder: str | Path, *, timeout: float = 100.0
) -> tuple[Path, ...]:
    """Write network and instances in the form of the verification competition, for verifiers outside of Python.

    The folder gets ``model.onnx``; ``vnnlib/0.vnnlib`` and so on, first the planted instances whose point is wrong and
    then the clean ones; ``instances.csv`` with network, property and time limit on each line; and
    ``counterexamples/0.txt`` and so on with what the answer to a planted instance is, not to be shown to the verifier.
    An answer ``unsat`` to one that has such a file is wrong.

    Args:
        model: The network; writing it needs the packages onnx and onnxscript.
        instances: As for :func:`score_verifier`.
        folder: Where to; it is made.
        timeout: Seconds that a verifier gets for each instance.

    Returns:
        The property files.

    Raises:
        InputError: If no planted point is a counterexample, ``timeout`` is not positive, or a package is missing.

    Source:
        Form of the official repository of arXiv:2412.03154, and of VNN-COMP 2024.
    """
    checks.positive("timeout", timeout)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise checks.InputError(f"writing ONNX needs more packages: pip install {' '.join(missing)}")
    model, instances = copy.deepcopy(model).cpu().eval(), instances.to("cpu")
    kept = instances.keep(counterexamples(model, instances))
    if not len(kept.x):
        raise checks.InputError("none of the planted points is a counterexample of this network: nothing to export")
    folder = Path(folder)
    (folder / "vnnlib").mkdir(parents=True, exist_ok=True)
    (folder / "counterexamples").mkdir(exist_ok=True)
    _write_onnx(model, kept.x[:2], folder / "model.onnx")
    with torch.no_grad():
        outputs = model(kept.x_cex)
    files: list[Path] = []
    for box, labels in ((kept.box, kept.y), (kept.clean_box, kept.y_clean)):
        for lower, upper, label in zip(*box, labels.tolist(), strict=True):
            files.append(folder / "vnnlib" / f"{len(files)}.vnnlib")
            prop = one_class(lower, upper, label, outputs.shape[1])
            write_vnnlib(prop, files[-1], f"All inputs are of class {label}.")
    for number, (x, y) in enumerate(zip(kept.x_cex, outputs, strict=True)):
        answer = result_text(Verdict.VIOLATED, x, y)
        (folder / "counterexamples" / f"{number}.txt").write_text(answer + "\n", encoding="utf-8")
    with (folder / "instances.csv").open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(["model.onnx", f"vnnlib/{file.name}", f"{timeout:g}"] for file in files)
    return tuple(files)


def _answers(verify_fn: Verifier, model: nn.Module, box: Box, labels: Tensor) -> list[Verdict]:
    with eval_mode(model):
        answers = list(verify_fn(model, box, labels))
    if len(answers) != len(labels):
        checks.fail(f"the verifier must answer for each of {len(labels)} boxes", f"{len(answers)} answers")
    for answer in answers:
        if not isinstance(answer, str) or answer not in set(Verdict):
            checks.fail(f"the verifier must answer {', '.join(Verdict)}", repr(answer))
    return [Verdict(answer) for answer in answers]


def _write_onnx(model: nn.Module, x: Tensor, file: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of packages that are not needed here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (x if len(x) > 1 else x.repeat_interleave(2, 0),), file, dynamo=True, external_data=False,
                input_names=["input"], output_names=["output"], dynamic_shapes=({0: batch},), verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)


__all__ = [
    "SCHEDULE",
    "Attack",
    "HiddenConfig",
    "InstanceSet",
    "Progress",
    "SoundnessReport",
    "TrainReport",
    "Verifier",
    "attack_survivors",
    "by_bounds",
    "counterexamples",
    "exactly",
    "export_vnnlib",
    "make_instances",
    "readable",
    "score_verifier",
    "train_hidden",
]
