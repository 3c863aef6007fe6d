"""The report in a real browser: it opens offline, draws its plots, and complains of nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from netwright.bench.compare import compare
from netwright.bench.report import write_report
from netwright.bench.store import Store

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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The document after its scripts have run, and what the browser's console said."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None, "needs chromium (Debian's package of this name)"
    folder: Path = tmp_path_factory.mktemp("report")
    store = Store(folder / "runs.db")
    hostile = '<img src=x onerror="console.log(1)">'
    rows = [
        f"{i},{hostile if i % 2 else '</script>'},{'<svg onload=console.log(2)>' if i % 3 else 'no'}" for i in range(60)
    ]
    (folder / "t.csv").write_text("\n".join([f"months,{hostile},churn", *rows]).replace('"', "'"))
    options = {"target": "churn", "slices": (hostile.replace('"', "'"),)}
    result = compare(
        str(folder / "t.csv"),
        "linear",
        ["gradient-noise", "phm[n=1]"],
        seeds=range(2),
        budget="3epochs",
        data_options=options,
        store=store,
    )
    write_report(result, folder / "report.html", command="netwright compare --data '<img src=x onerror=alert(1)>'")
    arguments = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{folder}/report.html"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr


def test_plots_are_drawn(page: tuple[str, str]) -> None:
    document, _ = page
    assert document.count('class="main-svg"') >= 2 * 7
    assert 'class="point"' in document


def test_the_console_is_silent(page: tuple[str, str]) -> None:
    _, console = page
    complaints = [line for line in console.splitlines() if "CONSOLE" in line]
    assert not complaints


def test_what_the_user_typed_is_text(page: tuple[str, str]) -> None:
    document, _ = page
    for foreign in ("<img src=", "<svg onload"):
        assert foreign not in document
    assert "&lt;img src=x" in document
    assert "churn" in document
