"""Compare ideas on the user's own model and data: same budget, paired seeds, corrected statistics."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from netwright import checks
from netwright.bench.arm import Study, build_arm, run_arm
from netwright.bench.executors import MakeExecutor
from netwright.bench.groups import Group, hidden_losses, summarise_groups
from netwright.bench.kept import KeptExecutor
from netwright.bench.local import local_executor
from netwright.bench.runner import run_cells
from netwright.bench.sequential import Looks
from netwright.bench.stats import ArmComparison, Difference, Summary, compare_arms, summarise, undecided
from netwright.bench.store import Cell, Outcome, Store
from netwright.data import Task
from netwright.recipes import parse_chain
from netwright.training import METRICS, Budget, Settings

BASELINE = "baseline"
STRATEGIES = ("auto", "ddp", "fsdp")
COSTS = {
    "parameters": "parameters",
    "nonzero": "parameters that are not zero",
    "macs": "multiply-adds per sample",
    "saved_bytes": "bytes saved for backward, batch 64",
    "peak_bytes": "peak bytes of a training step, batch 64",
    "latency_1": "latency, batch 1 (s)",
    "latency_64": "latency, batch 64 (s)",
    "train_seconds": "training time (s)",
}


@dataclass(frozen=True)
class Arm:
    """What came out of one arm.

    Attributes:
        name: The chain of recipes, as the user wrote it.
        metrics: Test metrics over the seeds that finished.
        costs: Means over these seeds.
        versus: Comparison with the baseline in every metric; empty for the baseline.
        curves: For each seed, the evaluations during training.
        failed: For each seed that failed, the reason.
        groups: The classes, and the values of the slices, on their own.
        reliability: Sums over these seeds by bin of confidence; empty for regression.
    """

    name: str
    metrics: Mapping[str, Summary]
    costs: Mapping[str, float]
    versus: Mapping[str, ArmComparison]
    curves: Mapping[int, Sequence[Mapping[str, float]]]
    failed: Mapping[int, str]
    groups: tuple[Group, ...] = ()
    reliability: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many seeds were run."""
        return len(self.curves) + len(self.failed)


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; arms are in the order in which they were given, the baseline first.

    Attributes:
        study: What all arms shared.
        seeds: The seeds.
        metric: The metric that decides.
        arms: The arms.
        looks: After how many seeds the arms were judged, if seeds were added until the verdicts were settled; arms may
            differ in the number of their seeds then.
        pareto: For each cost, the arms that no other arm beats in both this cost and the metric.
    """

    study: Study
    seeds: tuple[int, ...]
    metric: str
    arms: tuple[Arm, ...]
    looks: Looks | None = None

    @property
    def group_metric(self) -> str:
        """The metric by which classes and slices are compared: the one that decides, if it is a mean over samples."""
        known = {metric for arm in self.arms for group in arm.groups for metric in group.metrics}
        default = "accuracy" if "accuracy" in known else "rmse"
        return self.metric if self.metric in known else default

    def hidden_losses(self, arm: Arm) -> tuple[Group, ...]:
        """The classes and slices in which ``arm`` is worse than the baseline, if it is not worse on the whole."""
        whole = arm.versus.get(self.metric)
        if whole is not None and whole.verdict == Difference.WORSE:
            return ()
        return hidden_losses(arm.groups, self.group_metric)

    @property
    def failed(self) -> bool:
        """Whether any cell failed."""
        return any(arm.failed for arm in self.arms)

    def pareto(self, cost: str = "nonzero") -> tuple[str, ...]:
        """Names of the arms that no other arm beats in both ``cost`` and the metric that decides."""
        sign = 1 if METRICS[self.metric] == "higher" else -1
        points = [(a.name, a.costs[cost], sign * a.metrics[self.metric].mean) for a in self.arms if a.metrics]
        return tuple(
            name
            for name, price, score in points
            if not any(p <= price and s >= score and (p, s) != (price, score) for _, p, s in points)
        )

    def table(self) -> Table:
        """The verdicts and the main costs, for a terminal."""
        up_to = "up to " if self.looks else ""
        title = f"{self.study.name}: {self.metric} on the test part, {up_to}{_count(len(self.seeds), 'seed')}"
        table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
        table.add_column("arm", overflow="fold", min_width=20)
        for heading in (self.metric, "difference", "verdict", "parameters", "train s"):
            table.add_column(heading, justify="left" if heading == "verdict" else "right", no_wrap=True)
        if self.looks:
            table.add_column("seeds", justify="right")
        front = self.pareto()
        for arm in self.arms:
            name = escape(f"{'◆' if arm.name in front else ' '}\u00a0{arm.name}")
            if not arm.metrics:
                table.add_row(name, "failed", "", f"[red]{_count(len(arm.failed), 'seed')} failed[/]", "", "")
                continue
            versus = arm.versus.get(self.metric)
            verdict = "" if versus is None else _COLOURED[versus.verdict]
            if arm.failed:
                verdict += f" [red]({len(arm.failed)} failed)[/]"
            table.add_row(
                name,
                _with_interval(arm.metrics[self.metric]),
                "" if versus is None else _with_interval(versus.difference, signed=True),
                verdict,
                f"{arm.costs['nonzero']:,.0f}",
                f"{arm.costs['train_seconds']:.1f}",
                *([str(arm.seeds)] if self.looks else []),
            )
        notes = ["◆ Pareto front: no other arm is better with fewer parameters. Pruned ones do not count."]
        if len(self.seeds) < 2:
            notes.append("One seed gives no interval and no verdict: run at least 2, better 5 (--seeds 5).")
        elif self.looks:
            notes.append(
                "± is a 95 % interval over seeds; differences and verdicts are corrected for looking after "
                f"{', '.join(map(str, self.looks.seeds))} seeds, verdicts also (Holm) for the arms."
            )
        else:
            notes.append("± is a 95 % interval over seeds; verdicts are paired by seed, Holm-corrected over the arms.")
        notes += [
            f"{escape(arm.name)} loses in {escape(', '.join(group.name for group in lost[:5]))}"
            f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}, although not on average."
            for arm in self.arms[1:]
            if (lost := self.hidden_losses(arm))
        ]
        table.caption = "\n".join(notes)
        return table

    def to_json(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        return {
            "study": asdict(self.study),
            "seeds": list(self.seeds),
            "looks": None if self.looks is None else list(self.looks.seeds),
            "metric": self.metric,
            "group_metric": self.group_metric,
            "arms": [
                asdict(arm)
                | {"hidden_losses": [{"by": group.by, "value": group.value} for group in self.hidden_losses(arm)]}
                for arm in self.arms
            ],
            "pareto": {cost: list(self.pareto(cost)) for cost in COSTS},
        }


def compare(
    data: str,
    model: str = "mlp",
    tries: Sequence[str] = (),
    *,
    seeds: Sequence[int] | Literal["auto"] = tuple(range(5)),
    max_seeds: int = 30,
    budget: Budget | str = "20epochs",
    settings: Settings | None = None,
    metric: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    patience: int | None = None,
    noise: float = 0.5,
    accelerator: str = "cpu",
    precision: str = "32-true",
    devices: int = 1,
    strategy: str = "auto",
    workers: int = 1,
    executor: MakeExecutor | None = None,
    store: Store | None = None,
    console: Console | None = None,
    retry_failed: bool = False,
) -> Comparison:
    """Train the model without and with each of the ideas, under one budget, and compare.

    Args:
        data: What :func:`netwright.data.load` takes: a name, a CSV, an NPZ, a folder.
        model: A name (``"mlp"``), or a file and its function (``"model.py:build"``).
        tries: Chains of recipes, such as ``"phm[n=2]+lottery-ticket"``; the baseline needs no mention.
        seeds: One number decides division of the data, first weights and order of the data, the same for all arms.
            ``"auto"`` takes 0, 1, 2, … until every arm has a verdict or little chance of one, judged after every five
            seeds with a correction for it (:class:`netwright.bench.sequential.Looks`).
        max_seeds: The most seeds that ``"auto"`` may take. It is part of the correction: set it beforehand.
        budget: What every arm may spend, the training inside of recipes included.
        settings: Optimiser, learning rate, batch size.
        metric: What decides; accuracy, or RMSE for regression, if not given.
        data_options: Further arguments of ``load``, such as ``{"target": "churn"}`` or ``{"slices": ("plan",)}``.
        patience: Epochs without a better validation loss after which an arm stops early.
        noise: Standard deviation of the input noise of the robustness metric.
        accelerator: Fabric's name of the device.
        precision: Fabric's name of the precision.
        devices: How many devices a cell is spread over.
        strategy: Fabric's name of how: ``"auto"``, ``"ddp"`` or ``"fsdp"``.
        workers: Processes side by side.
        executor: Makes what runs the cells instead of local processes.
        store: Where finished cells are kept; ``.netwright/runs.db`` if not given.
        console: Where progress is shown; nowhere if not given.
        retry_failed: Run cells again that failed before.

    Raises:
        InputError: If anything does not fit together; nothing has been trained then.

    Example:
        >>> import tempfile
        >>> store = Store(f"{tempfile.mkdtemp()}/runs.db")
        >>> result = compare("iris", "linear", ["gradient-noise"], seeds=range(2), budget="2epochs", store=store)
        >>> [arm.name for arm in result.arms]
        ['baseline', 'gradient-noise']
    """
    study = Study(
        data=data,
        model=model,
        budget=Budget.parse(budget) if isinstance(budget, str) else budget,
        settings=settings or Settings(),
        data_options=data_options or {},
        patience=patience,
        noise=noise,
        accelerator=accelerator,
        precision=precision,
        devices=devices,
        strategy=strategy,
    )
    checks.at_least("workers", workers, 1)
    checks.at_least("devices", devices, 1)
    checks.known("strategy", strategy, STRATEGIES)
    looks = None
    if isinstance(seeds, str):
        checks.known("choice of seeds", seeds, ("auto",))
        looks, seeds = Looks.up_to(max_seeds), range(max_seeds)
    seeds = tuple(seeds)
    if not seeds:
        raise checks.InputError("a comparison needs at least one seed, got none")
    # the user's own words name an arm, the chain with all of its options decides what it is
    arms = {BASELINE: BASELINE} | {text.strip(): str(parse_chain(text)) for text in tries}
    task = study.load(seeds[0]).task
    metric = metric or ("accuracy" if task.is_classification else "rmse")
    checks.known("metric", metric, _metrics_of(task))
    for chain in arms.values():
        build_arm(study, parse_chain(chain), seeds[0])

    def run(wanted: Sequence[str], more: Sequence[int]) -> dict[str, dict[int, Outcome]]:
        cells = {(arm, seed): study.cell(arms[arm], seed) for seed in more for arm in wanted}
        unique = list({cell.key: cell for cell in cells.values()}.values())
        if console is not None and more[0] == seeds[0]:
            for line in changes_since(own_store, unique):
                console.print(line, soft_wrap=True, highlight=False)
        found = run_cells(unique, run_arm, own_store, kept, console=console, retry_failed=retry_failed)
        return {arm: {seed: found[cells[arm, seed].key] for seed in more} for arm in wanted}

    own_store = store or Store()
    kept = KeptExecutor(executor or partial(local_executor, workers))
    try:
        by_arm = run(list(arms), seeds) if looks is None else until_settled(run, list(arms), metric, looks)
    finally:
        kept.close_for_good()
    used = len(by_arm[BASELINE])
    return Comparison(study, seeds[:used], metric, _summarise_arms(by_arm, looks), looks)


def changes_since(store: Store, cells: Sequence[Cell]) -> list[str]:
    """What has changed since cells of this study were run that would else count; a line for each kind of change."""
    finished = store.find(cells)
    wanted = {_apart_from_files(cell.config): cell.config for cell in cells if cell.key not in finished}
    if not wanted:
        return []
    counts = dict.fromkeys(_FILES, 0)
    for config in store.earlier(cells[0].study):
        now = wanted.get(_apart_from_files(config))
        for name in _FILES:
            counts[name] += now is not None and config.get(name) != now.get(name)
    lines = []
    for name, what in _FILES.items():
        if counts[name]:
            cells_were = f"{_count(counts[name], 'cell')} of this study {'was' if counts[name] == 1 else 'were'}"
            lines.append(f"{what} has changed since {cells_were} run: they are kept, but do not count now")
    return lines


# what a cell's key holds of files that a user may change between two runs
_FILES = {"model_file": "the model file", "data_fingerprint": "the data", "code": "Netwright's own code"}


def _apart_from_files(config: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in config.items() if name not in _FILES}, sort_keys=True)


def until_settled(
    run: Callable[[Sequence[str], Sequence[int]], dict[str, dict[int, Outcome]]],
    arms: Sequence[str],
    metric: str,
    looks: Looks,
) -> dict[str, dict[int, Outcome]]:
    """Run the baseline and the arms that are still open with more and more seeds.

    Args:
        run: Outcomes by seed of the arms that are asked for, under the seeds that are asked for.
        arms: The arms, the baseline among them.
        metric: What decides.
        looks: After how many seeds the arms are judged.
    """
    by_arm: dict[str, dict[int, Outcome]] = {arm: {} for arm in arms}
    wanted = list(arms)
    for before, count in zip((0, *looks.seeds), looks.seeds, strict=False):
        for arm, outcomes in run(wanted, range(before, count)).items():
            by_arm[arm] |= outcomes
        values = {
            arm: {seed: found.result["metrics"][metric] for seed, found in outcomes.items() if found.status == "done"}
            for arm, outcomes in by_arm.items()
        }
        tried = {arm: found for arm, found in values.items() if arm != BASELINE}
        wanted = [BASELINE, *undecided(tried, values[BASELINE], METRICS[metric], looks)]
        if len(wanted) == 1:
            break
    return by_arm


def _summarise_arms(by_arm: Mapping[str, Mapping[int, Outcome]], looks: Looks | None) -> tuple[Arm, ...]:
    done = {
        arm: {seed: outcome.result for seed, outcome in outcomes.items() if outcome.status == "done"}
        for arm, outcomes in by_arm.items()
    }
    metrics = next((list(result["metrics"]) for results in done.values() for result in results.values()), [])
    values = {
        metric: {arm: {s: r["metrics"][metric] for s, r in results.items()} for arm, results in done.items()}
        for metric in metrics
    }
    versus = {
        metric: compare_arms(
            {arm: found for arm, found in by_metric.items() if arm != BASELINE},
            by_metric[BASELINE],
            METRICS[metric],
            looks=looks,
        )
        for metric, by_metric in values.items()
    }
    groups = summarise_groups(
        {arm: {s: r["groups"] for s, r in results.items()} for arm, results in done.items()}, looks
    )
    return tuple(
        Arm(
            name=arm,
            metrics={m: summarise(list(values[m][arm].values())) for m in metrics if values[m][arm]},
            costs=_means(results),
            versus={metric: versus[metric][arm] for metric in metrics if arm in versus[metric]},
            curves={seed: result["curve"] for seed, result in results.items()},
            failed={s: outcome.reason for s, outcome in by_arm[arm].items() if outcome.status == "failed"},
            groups=groups[arm],
            reliability=_pooled([result["reliability"] for result in results.values()]),
        )
        for arm, results in done.items()
    )


def _pooled(found: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Sums over the seeds, bin by bin."""
    names = found[0] if found else ()
    return {name: [sum(bins) for bins in zip(*(one[name] for one in found), strict=True)] for name in names}


def _metrics_of(task: Task) -> list[str]:
    regression = {"rmse", "r2", "noisy_rmse"}
    return [name for name in METRICS if (name in regression) != task.is_classification]


_COLOURED = {
    Difference.BETTER: "[green]better[/]",
    Difference.WORSE: "[red]worse[/]",
    Difference.NONE_SEEN: "no difference seen",
    Difference.UNKNOWN: "too few seeds",
}


def _with_interval(summary: Summary, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{summary.mean:{sign}.4g}"
    if summary.interval is not None:
        text += f" ± {(summary.interval[1] - summary.interval[0]) / 2:.2g}"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _means(results: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    return {cost: fmean(result["costs"][cost] for result in results.values()) for cost in COSTS} if results else {}


__all__ = ["BASELINE", "COSTS", "Arm", "Comparison", "compare", "until_settled"]
