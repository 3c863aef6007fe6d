"""One arm of a comparison under one seed: build, train, finish, measure."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from netwright import cost
from netwright.bench.distributed import run_distributed
from netwright.bench.source import code_digest
from netwright.bench.store import Cell
from netwright.data import Split, Splits, fingerprint, load
from netwright.models.baselines import build_model, check_outputs
from netwright.recipes import Chain, parse_chain
from netwright.training import (
    Budget,
    History,
    Record,
    Settings,
    Trainer,
    make_fabric,
    noise_robustness,
    predict,
    reliability,
    score,
    score_groups,
    task_loss,
)


@dataclass(frozen=True)
class Study:
    """What all arms of a comparison share.

    Attributes:
        data: Source of the data, as :func:`netwright.data.load` takes it.
        data_options: Further arguments of ``load``.
        model: Name of a model, or ``file.py:function``.
        budget: What every arm may spend.
        settings: Optimiser, learning rate, batch size.
        patience: Epochs without a better validation loss after which training stops; never, if not given.
        noise: Standard deviation of the input noise (inputs have standard deviation 1) under which the model is tested.
        accelerator: Fabric's name of the device.
        precision: Fabric's name of the precision.
        devices: How many devices a cell is spread over.
        strategy: Fabric's name of how: ``"auto"``, ``"ddp"`` or ``"fsdp"``.
    """

    data: str
    model: str = "mlp"
    budget: Budget = field(default_factory=lambda: Budget(epochs=20))
    settings: Settings = field(default_factory=Settings)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    patience: int | None = None
    noise: float = 0.5
    accelerator: str = "cpu"
    precision: str = "32-true"
    devices: int = 1
    strategy: str = "auto"

    @property
    def name(self) -> str:
        """What it is called in the store and on the progress bar."""
        return f"{Path(self.model).name} on {Path(self.data).name}"

    def cell(self, arm: str, seed: int) -> Cell:
        """The unit of work of one arm under one seed; ``arm`` is a chain of recipes with all of its options."""
        chain = parse_chain(arm)
        modules = {step.__module__ for recipe in chain.recipes for step in _steps(recipe)}
        config = asdict(self) | {
            "chain": arm,
            "seed": seed,
            "data_fingerprint": fingerprint(self.data),
            "model_file": _file_digest(self.model),
            "code": code_digest(__name__, *sorted(modules)),
        }
        return Cell(self.name, arm, seed, config)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """The study that a cell's configuration describes."""
        shared = {name: config[name] for name in cls.__dataclass_fields__}
        return cls(**shared | {"budget": Budget(**shared["budget"]), "settings": Settings(**shared["settings"])})

    def load(self, seed: int) -> Splits:
        """The data, divided by ``seed``."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.data_options.items()}
        return _load(self.data, fingerprint(self.data), seed, tuple(sorted(options.items())))


def build_arm(study: Study, chain: Chain, seed: int) -> tuple[nn.Module, Splits]:
    """The untrained network of an arm: the user's model as ``seed`` initialises it, changed by the chain.

    Raises:
        InputError: If the data, the model or the chain do not fit together.
    """
    splits = study.load(seed)
    chain.check_task(splits.task)
    torch.manual_seed(seed)
    model = chain.build(build_model(study.model, splits), splits)
    check_outputs(model, splits, f"the model after {chain}")
    return model, splits


def run_arm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Train and measure one arm under one seed; the test part is read once, at the end.

    Returns:
        ``metrics`` on the test part, the same by class and slice as ``groups``, ``reliability`` (see
        :func:`netwright.training.reliability`; empty for regression), ``costs``, and the ``curve`` of every evaluation
        during training.
    """
    study, seed = Study.of_config(config), int(config["seed"])
    if study.devices > 1 and not torch.distributed.is_initialized():
        return run_distributed(config)
    chain = parse_chain(config["chain"])
    model, splits = build_arm(study, chain, seed)
    trainer = Trainer(
        splits=splits,
        budget=study.budget,
        settings=study.settings,
        seed=seed,
        fabric=make_fabric(
            study.accelerator, devices=study.devices, precision=study.precision, strategy=study.strategy
        ),
        make_rule=chain.make_rule,
        patience=study.patience,
        initial_state=copy.deepcopy(model.state_dict()),
    )
    torch.manual_seed(seed)  # dropout and noise draw alike in all arms, whatever their construction drew
    start = time.perf_counter()
    trainer.fit(model, chain.training_share)
    model = chain.finish(model, trainer)
    seconds = time.perf_counter() - start
    outputs = predict(model, splits.test.inputs)
    noisy = noise_robustness(model, splits.test, std=study.noise, seed=seed)
    return {
        "metrics": score(outputs, splits.test) | noisy,
        "groups": _groups(outputs, splits),
        "reliability": _reliability(outputs, splits.test),
        "costs": _costs(model, splits) | {"train_seconds": seconds},
        "curve": _curve(trainer.histories),
    }


def _groups(outputs: Tensor, splits: Splits) -> list[dict[str, Any]]:
    """Metrics of every class (``by`` is ``None``) and of every value of every slice that the test part has."""
    divisions: list[tuple[str | None, tuple[str, ...], Tensor]] = []
    if splits.classes:
        divisions.append((None, splits.classes, splits.test.targets))
    divisions += [(found.name, found.levels, found.numbers) for found in splits.slices]
    return [
        {"by": by, "value": value, **scores}
        for by, values, numbers in divisions
        for value, scores in zip(values, score_groups(outputs, splits.test, numbers, len(values)), strict=True)
        if scores["count"]
    ]


def _reliability(outputs: Tensor, test: Split) -> dict[str, list[float]]:
    if not test.is_classification:
        return {}
    found = reliability(outputs.softmax(-1), test.targets.to(outputs.device))
    return {"count": found.count.tolist(), "confidence": found.confidence.tolist(), "right": found.right.tolist()}


def _costs(model: nn.Module, splits: Splits) -> dict[str, float]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = splits.train.inputs[:64].to(device)
    targets = splits.train.targets[:64].to(device)

    def loss(outputs: Tensor) -> Tensor:
        return task_loss(outputs, targets)

    model.eval()  # batch statistics must not move any more; memory is the same up to a few vectors
    return {
        "parameters": cost.count_params(model),
        "nonzero": cost.count_nonzero(model),
        "macs": cost.count_macs(model, batch[:1]),
        "saved_bytes": cost.saved_bytes(model, batch),
        "peak_bytes": cost.peak_memory(model, loss, batch),
        "latency_1": cost.latency(model, batch[:1]),
        "latency_64": cost.latency(model, batch),
    }


def _curve(histories: Sequence[History]) -> list[Record]:
    """The records of all rounds of training as one curve over the whole budget."""
    curve: list[Record] = []
    for history in histories:
        before = curve[-1] if curve else {}
        curve += [
            record | {name: record[name] + before.get(name, 0.0) for name in ("step", "epoch", "seconds")}
            for record in history.records
        ]
    return curve


@lru_cache(maxsize=4)
def _load(source: str, content: str, seed: int, options: tuple[tuple[str, Any], ...]) -> Splits:  # noqa: ARG001
    return load(source, seed=seed, **dict(options))


def _steps(recipe: Any) -> list[Any]:
    return [step for step in (recipe.build, recipe.rule, recipe.finish) if step is not None]


def _file_digest(model: str) -> str:
    file = Path(model.rpartition(":")[0])
    return sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


__all__ = ["Study", "build_arm", "run_arm"]
