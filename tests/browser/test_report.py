"""The reports in a real browser: they open offline, draw their plots, and complain of nothing."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from netwright.bench import explaining, findings_report, inspection, planning
from netwright.bench.catalogue import catalogue
from netwright.bench.compare import compare
from netwright.bench.idea_page import write_idea_page
from netwright.bench.report import write_report
from netwright.bench.store import Store
from netwright.data import load
from netwright.models.baselines import build_model

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
    "--enable-logging=stderr",
]


Page = tuple[str, str, int]


@pytest.fixture(scope="module", params=["compare", "explain", "inspect", "plan", "show"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The document after its scripts have run, what the browser's console said, and how many plots there must be."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None, "needs chromium (Debian's package of this name)"
    folder: Path = tmp_path_factory.mktemp("report")
    command = f"netwright {request.param} --data '<img src=x onerror=alert(1)>'"
    if request.param == "compare":
        store = Store(folder / "runs.db")
        hostile = "<img src=x onerror='console.log(1)'>"
        values, classes = (hostile, "</script>"), ("<svg onload=console.log(2)>", "no", "no")
        rows = [f"{i},{values[i % 2]},{classes[i % 3]}" for i in range(60)]
        (folder / "t.csv").write_text("\n".join([f"months,{hostile},churn", *rows]))
        result = compare(
            str(folder / "t.csv"),
            "linear",
            ["gradient-noise", "phm[n=1]"],
            seeds=range(2),
            budget="3epochs",
            data_options={"target": "churn", "slices": (hostile,)},
            store=store,
        )
        write_report(result, folder / "report.html", command=command)
        plots = 7
    elif request.param == "show":
        write_idea_page(catalogue()["more-is-better"], folder / "report.html", command=command)
        plots = 7
    elif request.param == "explain":
        digits = load("digits", train=60)
        model = build_model("cnn", digits)
        by_pictures = explaining.explain_pictures(model, explaining.from_test_part(model, digits, 2), splits=digits)
        iris = load("iris")
        by_rules = explaining.explain_table(build_model("linear", iris), iris)
        found = dataclasses.replace(by_rules, sections=by_pictures.sections + by_rules.sections)
        findings_report.write_report(found, folder / "report.html", command=command)
        plots = 2
    else:
        iris = load("iris")
        model = build_model("mlp", iris)
        found = (
            planning.plan(model, iris) if request.param == "plan" else inspection.inspect(model, iris, against=model)
        )
        findings_report.write_report(found, folder / "report.html", command=command)
        plots = sum(len(section.plots) for section in found.sections)
    arguments = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{folder}/report.html"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr, plots


def test_plots_are_drawn(page: Page) -> None:
    document, _, plots = page
    assert document.count('class="main-svg"') >= 2 * plots
    assert 'class="point"' in document


def test_the_console_is_silent(page: Page) -> None:
    _, console, _ = page
    complaints = [line for line in console.splitlines() if "CONSOLE" in line]
    assert not complaints


def test_what_the_user_typed_is_text(page: Page) -> None:
    document, _, _ = page
    for foreign in ("<img src=x", '<img src="x', "<svg onload"):
        assert foreign not in document
    assert "&lt;img src=x" in document
