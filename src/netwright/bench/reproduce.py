"""Re-run the experiments behind the papers' claims, and judge them."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from netwright import checks
from netwright.bench.runner import Executor, LocalExecutor, run_cells
from netwright.bench.source import code_digest
from netwright.bench.stats import CheckResult, Summary, Verdict, judge, judge_claim
from netwright.bench.store import Cell, Store
from netwright.claims import SCALES, Claim, Measurement, Scale, Trial, import_claim, read_claims

DEFAULT_SEEDS: dict[Scale, tuple[int, ...]] = {"smoke": (0,), "quick": tuple(range(5)), "full": tuple(range(5))}


@dataclass(frozen=True)
class ClaimResult:
    """What came out of one claim; the smoke scale gives no verdict.

    Attributes:
        claim: What was claimed.
        scale: At which size it was checked.
        seeds: With which seeds.
        seconds: Time of all seeds together, as if one had run after the other.
        verdict: ``None`` at the smoke scale, or if a seed failed.
        checks: The verdict on each check.
        measurements: All that was measured, by seed.
        failed: For each seed that failed, the reason.
    """

    claim: Claim
    scale: Scale
    seeds: tuple[int, ...]
    seconds: float
    verdict: Verdict | None
    checks: tuple[CheckResult, ...]
    measurements: Mapping[int, Sequence[Measurement]]
    failed: Mapping[int, str]

    def to_json(self) -> dict[str, Any]:
        """The verdicts and what they rest on, as JSON values."""
        return {
            "slug": self.claim.slug,
            "verdict": self.verdict,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "seconds": round(self.seconds, 1),
            "checks": [_check_json(result, self.scale) for result in self.checks],
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
        }

    def evidence(self) -> dict[str, Any]:
        """:meth:`to_json` with all measurements and what they were made with: what stands in ``evidence/``."""
        made_with = {
            "netwright": version("netwright"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        }
        rows = [
            {"seed": seed} | {k: v for k, v in asdict(found).items() if v is not None}
            for seed, measured in self.measurements.items()
            for found in measured
        ]
        return self.to_json() | {"made_with": made_with, "measurements": rows}


def run_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Run one claim under one seed; returns its measurements."""
    trial = Trial(config["seed"], config["scale"], config["device"])
    trial.seed_everything()
    return {"measurements": [asdict(found) for found in import_claim(config["slug"]).run(trial)]}


def reproduce(
    slugs: Sequence[str],
    *,
    scale: Scale = "quick",
    seeds: Sequence[int] | None = None,
    device: str = "cpu",
    workers: int = 1,
    executor: Executor | None = None,
    store: Store | None = None,
    console: Console | None = None,
    retry_failed: bool = False,
    observer: Callable[[ClaimResult], None] | None = None,
) -> list[ClaimResult]:
    """Run claims and judge them; cells that are in the store already are not run again.

    Args:
        slugs: Names of the claims.
        scale: ``"smoke"`` (seconds, no verdict), ``"quick"`` (up to a minute) or ``"full"`` (up to ten).
        seeds: The seeds; 0 to 4 if not given, at the smoke scale 0.
        device: Where the networks are trained.
        workers: Processes side by side.
        executor: Where cells run instead; local processes if not given.
        store: Where finished cells are kept; ``.netwright/runs.db`` if not given.
        console: Where progress is shown; nowhere if not given.
        retry_failed: Run cells again that failed before.
        observer: Called with the result of each claim when it is there.

    Raises:
        InputError: If a slug or the scale is not known, or there is no seed.
    """
    claims = read_claims()
    checks.known("scale", scale, SCALES)
    for slug in slugs:
        checks.known("claim", slug, claims)
    chosen = DEFAULT_SEEDS[scale] if seeds is None else tuple(seeds)
    if not chosen:
        raise checks.InputError("a claim needs at least one seed, got none")
    store = store or Store()
    executor = executor or LocalExecutor(workers)
    results = []
    for slug in dict.fromkeys(slugs):
        code = code_digest(f"netwright.claims.{slug.replace('-', '_')}")
        cells = [
            Cell(
                f"{slug} ({scale})",
                slug,
                seed,
                {"slug": slug, "scale": scale, "device": device, "seed": seed, "code": code},
            )
            for seed in chosen
        ]
        outcomes = run_cells(cells, run_trial, store, executor, console=console, retry_failed=retry_failed)
        by_seed = {cell.seed: outcomes[cell.key] for cell in cells}
        measurements = {
            seed: [Measurement(**row) for row in outcome.result["measurements"]]
            for seed, outcome in by_seed.items()
            if outcome.status == "done"
        }
        failed = {seed: outcome.reason for seed, outcome in by_seed.items() if outcome.status == "failed"}
        judged = tuple(judge(check, measurements) for check in claims[slug].checks) if not failed else ()
        verdict = judge_claim(judged) if judged and scale != "smoke" else None
        seconds = sum(outcome.seconds for outcome in by_seed.values())
        result = ClaimResult(claims[slug], scale, chosen, seconds, verdict, judged, measurements, failed)
        results.append(result)
        if observer is not None:
            observer(result)
    return results


def write_evidence(result: ClaimResult, folder: Path) -> Path:
    """Write ``folder/<scale>/<slug>.json``.

    Raises:
        InputError: If the folder cannot be written.
    """
    path = folder / result.scale / f"{result.claim.slug}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result.evidence(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise checks.InputError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from error
    return path


def results_table(results: Sequence[ClaimResult]) -> Table:
    """All checks of the claims with their verdicts, for a terminal."""
    table = Table(title="claims")
    for heading in ("claim", "check", "arm", "against", "difference", "limits (one-sided 95 %)", "verdict"):
        table.add_column(heading)
    for result in results:
        for checked in result.checks:
            check = checked.check
            against = f"= {check.exactly:g}" if check.exactly is not None else _describe(check.baseline, checked.arms)
            table.add_row(
                result.claim.slug,
                check.name,
                _describe(check.arm, checked.arms),
                against,
                f"{checked.difference:+.4g}",
                "" if checked.interval is None else f"{checked.interval[0]:+.4g} … {checked.interval[1]:+.4g}",
                "" if result.scale == "smoke" else _COLOURED[checked.verdict],
            )
        if result.failed:
            seed, reason = next(iter(result.failed.items()))
            table.add_row(result.claim.slug, f"[red]seed {seed} failed: {reason}[/]", "", "", "", "", "")
        elif result.verdict is not None:
            table.add_row(f"[bold]{result.claim.slug}[/]", "", "", "", "", "", f"[bold]{_COLOURED[result.verdict]}[/]")
        table.add_section()
    return table


_COLOURED = {
    Verdict.HOLDS: "[green]holds[/]",
    Verdict.REFUTED: "[red]refuted[/]",
    Verdict.INCONCLUSIVE: "[yellow]inconclusive[/]",
}


def _describe(arm: str | float | None, arms: Mapping[str, Summary]) -> str:
    return f"{arm}: {arms[arm].mean:.4g}" if isinstance(arm, str) else f"{arm:g}"


def _check_json(result: CheckResult, scale: Scale) -> dict[str, Any]:
    return {
        "name": result.check.name,
        "verdict": None if scale == "smoke" else result.verdict,
        "metric": result.check.metric,
        "arms": {arm: {"mean": s.mean, "se": s.se, "values": list(s.values)} for arm, s in result.arms.items()},
        "difference": result.difference,
        "interval": None if result.interval is None else list(result.interval),
    }


__all__ = ["DEFAULT_SEEDS", "ClaimResult", "reproduce", "results_table", "run_trial", "write_evidence"]
