"""The A/A test: the baseline against itself, again and again; and how often a true difference is found.

``python -m benchmarks.aa`` writes its tables into docs/statistics.md. Two arms that are equally good are two networks
that differ in nothing but their first weights, drawn from the same law: division of the data and order of the samples
are shared, as in any comparison. (The baseline under another name alone would give the same cells, and differences of
exactly 0.)

The mass of the studies is drawn from a pool of real trainings, each seed used once, and judged by the functions that
``compare`` calls. A few whole studies go through ``compare`` itself.
"""

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from netwright.bench.compare import compare
from netwright.bench.sequential import Looks
from netwright.bench.stats import Difference, compare_arms, compare_differences, undecided
from netwright.bench.store import Store
from netwright.data.bundled import read_bundled
from netwright.data.loading import prepare
from netwright.data.splits import ALL_TASKS, Splits
from netwright.recipes import Recipe, all_recipes

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
MOST = 30
ARMS = 10
LOOKS = Looks.up_to(MOST)
STEPS, BATCH, LR = 40, 50, 0.01
HIDDEN = 16
FOUND = (Difference.BETTER, Difference.WORSE)
SEEDS = (3, 5, 10, 20)

Pool = NDArray[np.float64]  # (seeds, 1 + ARMS) values of one metric


class Rate(NamedTuple):
    """A share of studies with its 95 % interval."""

    studies: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%})".replace("%", " %")


def pool(data: str, train: int | None, seeds: int, chunk: int = 100) -> dict[str, Pool]:
    """Accuracy, by class, too, and negative log-likelihood of 1 + ARMS equally good networks under every seed."""
    raw = read_bundled(data)
    found: dict[str, list[Tensor]] = {"accuracy": [], "nll": [], "by class": []}
    for start in range(0, seeds, chunk):
        splits = [prepare(raw, data, seed=seed, train=train) for seed in range(start, min(start + chunk, seeds))]
        for metric, values in train_stack(splits, start).items():
            found[metric].append(values)
    return {metric: torch.cat(values).double().numpy() for metric, values in found.items()}


def train_stack(splits: list[Splits], seed: int) -> dict[str, Tensor]:
    """Train 1 + ARMS networks for each division side by side, as one stack of tensors.

    Metrics are ``(divisions, arms)``, the accuracy by class ``(divisions, arms, classes)``.

    Adam and the gradient of a sum of losses treat every number on its own, so the stack changes nothing but the speed.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, test = (
        torch.stack([getattr(s, part).inputs.flatten(1) for s in splits])[:, None] for part in ("train", "test")
    )
    targets, answers = (torch.stack([getattr(s, part).targets for s in splits]) for part in ("train", "test"))
    sizes = (inputs.shape[-1], HIDDEN, splits[0].outputs)

    def uniform(fan_in: int, *shape: int) -> Tensor:  # as torch.nn.Linear draws
        drawn = (2 * torch.rand(len(splits), 1 + ARMS, *shape, generator=generator) - 1) / fan_in**0.5
        return drawn.requires_grad_()

    layers = [(uniform(a, a, b), uniform(a, 1, b)) for a, b in itertools.pairwise(sizes)]

    def forward(x: Tensor) -> Tensor:
        (first, first_bias), (second, second_bias) = layers
        return (x @ first + first_bias).relu() @ second + second_bias

    optimizer = torch.optim.Adam([p for layer in layers for p in layer], lr=LR)
    for _ in range(STEPS):
        # one order of the samples for all arms of a division
        batch = torch.rand(targets.shape, generator=generator).argsort(1)[:, :BATCH]
        x = torch.take_along_dim(inputs, batch[:, None, :, None], 2)
        y = torch.take_along_dim(targets, batch, 1)[:, None].expand(-1, 1 + ARMS, -1)
        loss = functional.cross_entropy(forward(x).flatten(0, 2), y.flatten(), reduction="sum") / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = forward(test)
    right = answers[:, None].expand(-1, 1 + ARMS, -1)
    nll = functional.cross_entropy(logits.flatten(0, 2), right.flatten(), reduction="none").unflatten(0, right.shape)
    hits = (logits.argmax(-1) == right).double()
    member = functional.one_hot(answers, splits[0].outputs).double()[:, None]
    by_class = (hits[..., None] * member).sum(2) / member.sum(2)
    return {"accuracy": hits.mean(-1), "nll": nll.mean(-1), "by class": by_class}


def studies(values: Pool, seeds: int) -> Iterator[Pool]:
    """Disjoint blocks of so many seeds."""
    return iter(values[: len(values) // seeds * seeds].reshape(-1, seeds, *values.shape[1:]))


def arms_of(block: Pool, arms: list[int], baseline: int) -> tuple[dict[str, dict[int, float]], dict[int, float]]:
    return {str(arm): dict(enumerate(block[:, arm])) for arm in arms}, dict(enumerate(block[:, baseline]))


def judge_once(block: Pool, arms: list[int], baseline: int) -> list[str]:
    """The arms that get a verdict from all seeds of the block."""
    compared = compare_arms(*arms_of(block, arms, baseline), "higher")
    return [name for name, found in compared.items() if found.verdict in FOUND]


def judge_uncorrected(block: Pool, arms: list[int], baseline: int) -> list[str]:
    """The arms that get a verdict at any look, where each look is judged as if it were the only one: a warning."""
    return sorted({name for count in LOOKS.seeds for name in judge_once(block[:count], arms, baseline)})


def judge_with_looks(block: Pool, arms: list[int], baseline: int) -> tuple[list[str], dict[str, int]]:
    """The arms that get a verdict where seeds are added until every arm is settled, and the seeds of each arm."""
    everything, first = arms_of(block, arms, baseline)
    have: dict[str, dict[int, float]] = {name: {} for name in everything}
    wanted = list(everything)
    for count in LOOKS.seeds:
        for name in wanted:
            have[name] = {seed: value for seed, value in everything[name].items() if seed < count}
        wanted = undecided(have, first, "higher", LOOKS)
        if not wanted:
            break
    compared = compare_arms(have, first, "higher", looks=LOOKS)
    used = {name: len(values) for name, values in have.items()}
    return [name for name, found in compared.items() if found.verdict in FOUND], used


def rate(blocks: list[list[bool]]) -> Rate:
    """Share of studies; those of one block use the same divisions of the data and count as one."""
    means = [float(np.mean(block)) for block in blocks]
    count, share = sum(map(len, blocks)), float(np.mean(means))
    if len(blocks[0]) == 1:
        low, high = stats.binomtest(int(sum(means)), count).proportion_ci()
        return Rate(count, share, float(low), float(high))
    half = 1.96 * float(np.std(means, ddof=1)) / len(means) ** 0.5
    return Rate(count, share, max(share - half, 0.0), share + half)


def false_alarms(values: Pool) -> dict[str, tuple[Rate, Rate, float]]:
    """How often equal arms are told apart: for each way to choose seeds with one arm and with ten, and mean seeds."""
    pairs = [(2 * i, 2 * i + 1) for i in range((1 + ARMS) // 2)]
    ten = list(range(1, 1 + ARMS))
    found = {}
    for seeds in SEEDS:
        one = rate([[bool(judge_once(b, [arm], base)) for base, arm in pairs] for b in studies(values, seeds)])
        all_ten = rate([[bool(judge_once(block, ten, 0))] for block in studies(values, seeds)])
        found[str(seeds)] = one, all_ten, float(seeds)
    singles = [[judge_with_looks(b, [arm], base) for base, arm in pairs] for b in studies(values, MOST)]
    tens = [[judge_with_looks(block, ten, 0)] for block in studies(values, MOST)]
    one, all_ten = (rate([[bool(names) for names, _ in block] for block in blocks]) for blocks in (singles, tens))
    used = float(np.mean([seeds for block in singles for _, used in block for seeds in used.values()]))
    found["auto"] = one, all_ten, used
    one = rate([[bool(judge_uncorrected(b, [arm], base)) for base, arm in pairs] for b in studies(values, MOST)])
    all_ten = rate([[bool(judge_uncorrected(block, ten, 0))] for block in studies(values, MOST)])
    found["5, 10, …, 30, each judged as if it were the only look"] = one, all_ten, float("nan")
    return found


def group_alarms(by_class: Pool) -> dict[int, tuple[Rate, Rate]]:
    """How often any class of any arm is told apart where none differs: with one arm and with ten."""

    def told_apart(block: Pool, arms: range) -> bool:
        differences = {
            (arm, group): dict(enumerate(block[:, arm, group] - block[:, 0, group]))
            for arm in arms
            for group in range(block.shape[2])
        }
        return any(found.verdict in FOUND for found in compare_differences(differences, "higher").values())

    return {
        seeds: (
            rate([[told_apart(block, range(1, 2))] for block in studies(by_class, seeds)]),
            rate([[told_apart(block, range(1, 1 + ARMS))] for block in studies(by_class, seeds)]),
        )
        for seeds in SEEDS
    }


def power(values: Pool, true: float, arms: int) -> dict[str, tuple[float, float]]:
    """How often an arm that is ``true`` better is found beside ``arms - 1`` equal ones, and the seeds it took."""
    better = values.copy()
    better[:, 1] += true
    chosen = list(range(1, 1 + arms))
    found = {}
    for seeds in SEEDS:
        hits = ["1" in judge_once(block, chosen, 0) for block in studies(better, seeds)]
        found[str(seeds)] = float(np.mean(hits)), float(seeds)
    results = [judge_with_looks(block, chosen, 0) for block in studies(better, MOST)]
    shares, used = ["1" in names for names, _ in results], [seeds["1"] for _, seeds in results]
    found["auto"] = float(np.mean(shares)), float(np.mean(used))
    return found


def again(model: nn.Module, splits: Splits, *, copy: int) -> nn.Module:  # noqa: ARG001 - a recipe's signature
    """The same network with other first weights of the same law."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() * 1000 + copy)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    return model


def end_to_end(count: int) -> dict[str, tuple[int, int]]:
    """Whole studies through ``compare``: arms told apart, arms judged; with five seeds, and with ``auto``."""
    recipe = Recipe("again", "gradient-noise", "Other first weights.", ALL_TASKS, {"copy": 1}, build=again)
    all_recipes()["again"] = recipe  # type: ignore[index]  # for this process alone
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/runs.db")
        for name, number, arms in (("5", count, 2), ("auto", max(1, count // 10), 2)):
            tries = [f"again[copy={copy}]" for copy in range(1, 1 + arms)]
            told, judged = 0, 0
            for study in range(number):
                seeds = "auto" if name == "auto" else range(5 * study, 5 * study + 5)
                # another learning rate makes another study of the same seeds
                lr = LR * (1 + study / 1000)
                result = compare_cheaply(tries, seeds, lr, store)
                told += sum(arm.versus["accuracy"].verdict in FOUND for arm in result.arms[1:])
                judged += arms
            found[name] = told, judged
    return found


def compare_cheaply(tries: list[str], seeds: object, lr: float, store: Store):
    from netwright.training import Budget, Settings

    return compare(
        "digits",
        "linear",
        tries,
        seeds=seeds,  # type: ignore[arg-type]
        budget=Budget(steps=STEPS),
        settings=Settings(lr=lr),
        data_options={"train": 300},
        store=store,
    )


def alarm_table(pools: Mapping[str, Pool]) -> str:
    lines = [
        "| what decides | seeds | studies | one arm: told apart | studies | ten arms: any told apart | mean seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in pools.items():
        for seeds, (one, ten, used) in false_alarms(values).items():
            lines.append(
                f"| {name} | {seeds} | {one.studies:,} | {one} | {ten.studies:,} | {ten} | {used:.1f} |".replace(
                    "nan", ""
                )
            )
    return "\n".join(lines)


def power_table(values: Pool, arms: int) -> str:
    spread = float(np.std(values[:, 1] - values[:, 0], ddof=1))
    heading = " | ".join(f"{seeds} seeds" for seeds in SEEDS)
    lines = [
        f"| true difference / spread | in points of accuracy | {heading} | auto, up to {MOST} | mean seeds of auto |",
        "|---|---|" + "---|" * (len(SEEDS) + 2),
    ]
    for ratio in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
        found = power(values, ratio * spread, arms)
        cells = " | ".join(f"{share:.0%}".replace("%", " %") for share, _ in found.values())
        lines.append(f"| {ratio:g} | {100 * ratio * spread:.1f} | {cells} | {found['auto'][1]:.1f} |")
    return "\n".join(lines)


def group_table(by_class: Pool) -> str:
    lines = [
        "| seeds | studies | one arm, ten classes: any told apart | ten arms, 100 comparisons: any told apart |",
        "|---|---|---|---|",
    ]
    for seeds, (one, ten) in group_alarms(by_class).items():
        lines.append(f"| {seeds} | {one.studies:,} | {one} | {ten} |")
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Print a result and put it into its place in docs/statistics.md."""
    print(f"\n{text}", flush=True)
    page = PAGE.read_text(encoding="utf-8")
    marked = re.compile(f"(<!-- measured: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    PAGE.write_text(marked.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12000, help="seeds of the pool, 11 trainings each")
    parser.add_argument("--end-to-end", type=int, default=40, help="whole studies through compare")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    digits, iris = pool("digits", 300, given.seeds), pool("iris", None, given.seeds)
    print(f"{2 * given.seeds * (1 + ARMS):,} networks in {time.perf_counter() - start:.0f} s")
    pools = {
        "accuracy on digits": digits["accuracy"],
        "negative log-likelihood on digits": digits["nll"],
        "accuracy on iris": iris["accuracy"],
    }
    write("alarms", alarm_table(pools))
    write("alarms by class", group_table(digits["by class"][: given.seeds // 4]))  # 110 tests a study take their time
    write("power, one arm", power_table(digits["accuracy"], 1))
    write("power, ten arms", power_table(digits["accuracy"], ARMS))
    parts = [
        f"{2 * given.seeds * (1 + ARMS):,} small networks were trained for the tables. Whole studies by `compare`:",
        "",
    ]
    for seeds, (told, judged) in end_to_end(given.end_to_end).items():
        low, high = stats.binomtest(told, judged).proportion_ci()
        how = "`--seeds auto`" if seeds == "auto" else f"{seeds} seeds"
        parts.append(f"- {how}: {told} of {judged} arms told apart (95 % interval {low:.1%} to {high:.1%})")
    write("end to end", "\n".join(parts).replace("%)", " %)").replace("% to", " % to"))


if __name__ == "__main__":
    main()
