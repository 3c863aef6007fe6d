"""Tests of the command line: what it does, what it says of bad input, and with which exit code."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import plotly.graph_objects as go
import pytest

from netwright.bench.evidence import load_evidence
from netwright.claims import import_claim
from netwright.cli import main

TINY = ["--seeds", "2", "--budget", "2steps", "--workers", "1"]


@pytest.fixture(autouse=True)
def _fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> int:
    """The exit code of a verb."""
    try:
        main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a verb that has to end with exit code 2, without a traceback."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_compare_writes_table_report_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    tries = ["--try", "gradient-noise", "--try", "phm[n=2]+gradient-noise"]
    assert run("compare", "--data", "digits", *tries, *TINY, "--json", "out.json") == 0
    table = capsys.readouterr().out
    for text in ("mlp on digits", "baseline", "phm[n=2]+gradient-noise", "±", "netwright-compare.html"):
        assert text in table
    found = json.loads(Path("out.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["baseline", "gradient-noise", "phm[n=2]+gradient-noise"]
    baseline, noise, both = found["arms"]
    assert set(baseline["metrics"]) == {"accuracy", "nll", "ece", "brier", "noisy_accuracy"}
    assert len(baseline["metrics"]["accuracy"]["values"]) == 2
    assert both["costs"]["parameters"] < baseline["costs"]["parameters"] == noise["costs"]["parameters"]
    report = Path("netwright-compare.html").read_text(encoding="utf-8")
    assert "phm[n=2]+gradient-noise" in report
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", report), "the report must not load anything"


def test_no_column_is_lost_where_there_is_little_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run("compare", "--data", "iris", "--model", "linear", "--try", "gradient-noise", *TINY) == 0
    table = capsys.readouterr().out
    for text in ("baseline", "gradient-noise", "difference", "verdict", "parameters", "train s", "±"):
        assert text in table


def test_json_on_standard_output_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "--data", "iris", "--model", "linear", *TINY, "--json", "-") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["metric"] == "accuracy"
    assert "linear on iris" in captured.err


def test_a_csv_and_a_model_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{i},{i % 7},{'red' if i % 3 else 'blue'},{2.5 * i}" for i in range(60)]
    Path("sales.csv").write_text("a,b,colour,price\n" + "\n".join(rows))
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, outputs, width=8):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, outputs))\n"
    )
    arguments = ["--data", "sales.csv", "--target", "price", "--model", "net.py:build", "--try", "gradient-noise"]
    assert run("compare", *arguments, *TINY) == 0
    assert "net.py:build on sales.csv: rmse" in capsys.readouterr().out


def test_seeds_that_are_added_and_slices(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "diabetes", "--model", "linear", "--try", "gradient-noise", "--slice", "sex", *TINY]
    assert run("compare", *arguments, "--seeds", "auto", "--max-seeds", "2", "--json", "out.json") == 0
    assert "up to 2 seeds" in capsys.readouterr().out
    found = json.loads(Path("out.json").read_text())
    assert (found["looks"], found["group_metric"]) == ([2], "rmse")
    assert [group["by"] for group in found["arms"][1]["groups"]] == ["sex", "sex"]
    assert {"difference", "p_value", "verdict"} == set(found["arms"][1]["groups"][0]["versus"]["rmse"])


def test_one_seed_gives_no_interval_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "iris", "--model", "linear", "--try", "gradient-noise", *TINY, "--seeds", "1"]
    assert run("compare", *arguments) == 0
    out = capsys.readouterr().out
    assert "too few seeds" in out
    assert "One seed gives no interval and no verdict" in out
    assert "±" not in out
    assert "One seed was run" in Path("netwright-compare.html").read_text(encoding="utf-8")


def test_a_loss_that_turns_nan_fails_that_arm_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Fragile(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        "        y = self.linear(x)\n"
        "        return y * float('nan') if self.training and torch.initial_seed() == 1 else y\n"
        "build = Fragile\n"
    )
    assert run("compare", "--data", "iris", "--model", "net.py:build", *TINY, "--json", "out.json") == 1
    assert "seed 1: Diverged: the loss became nan between steps 1 and 2" in capsys.readouterr().out
    (arm,) = json.loads(Path("out.json").read_text())["arms"]
    assert (list(arm["failed"]), len(arm["metrics"]["accuracy"]["values"])) == (["1"], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digts"], "unknown data set 'digts'; did you mean 'digits'?"),
        (["--data", "digits", "--model", "mpl"], "unknown model 'mpl'; did you mean 'mlp'?"),
        (["--data", "digits", "--try", "pmh"], "unknown recipe 'pmh'; did you mean 'phm'?"),
        (["--data", "digits", "--try", "phm[m=3]"], "recipe 'phm' has no option 'm'"),
        (
            ["--data", "digits", "--try", "gradient-noise+quadratic"],
            "one learning rule, got 2: 'gradient-noise' and 'quadratic'",
        ),
        (
            ["--data", "iris", "--try", "evonorm"],
            "recipe 'evonorm' is for image-classification; the data is for tabular",
        ),
        (
            ["--data", "iris", "--model", "cnn"],
            "model 'cnn' needs pictures (channels, height, width), got inputs of shape (4,)",
        ),
        (["--data", "digits", "--metric", "acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        (["--data", "digits", "--metric", "rmse"], "unknown metric 'rmse'"),
        (["--data", "digits", "--budget", "0epochs"], "budget in epochs must be positive, got 0"),
        (["--data", "digits", "--budget", "soon"], "budget must look like 20epochs"),
        (["--data", "digits", "--seeds", "0"], "seeds must name at least one seed"),
        (["--data", "digits", "--seeds", "three"], "seeds must be a number such as 5, or a range"),
        (
            ["--data", "digits", "--seeds", "auto", "--max-seeds", "1"],
            "largest number of seeds must be at least 2, got 1",
        ),
        (["--data", "digits", "--slice", "x"], "digits has no column 'x' for a slice"),
        (["--data", "digits", "--seeds", "5:5"], "seeds must name at least one seed"),
        (["--data", "digits", "--lr", "-1"], "lr must be positive"),
        (["--data", "digits", "--workers", "0"], "workers must be at least 1, got 0"),
        (["--data", "digits", "--model", "nowhere.py:build"], "model file 'nowhere.py' does not exist"),
        (["--data", "digits", "--model", "nowhere.py"], "needs the name of its function: nowhere.py:build"),
        (["--data", "none.csv", "--target", "x"], "none.csv"),
        (["--data", "digits", "--report", "/dev/null/report.html"], "cannot write /dev/null/report.html"),
        (["--data", "digits", "--store", "/dev/null/runs.db"], "cannot open the store /dev/null/runs.db"),
    ],
)
def test_what_compare_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, "compare", "--budget", "1steps", *arguments)
    assert not Path("netwright-compare.html").exists()


MODELS = {
    "raises when it is read": ("raise OSError('no disk')", "model file 'net.py' raises OSError: no disk"),
    "no such function": ("def built(): ...", "model file 'net.py' has no function 'build'; did you mean 'built'?"),
    "raises when it builds": ("def build(): raise KeyError('width')", "net.py:build raises KeyError: 'width'"),
    "no module": ("def build(): return 3", "net.py:build must return a torch.nn.Module, got a int"),
    "unknown argument": (
        "def build(depth): ...",
        "net.py:build asks for 'depth'; it can be given splits, input_shape, outputs",
    ),
    "wrong output": (
        "from torch import nn\ndef build(): return nn.Linear(4, 7)",
        "must map inputs (2, 4) to outputs of shape (2, 3), got shape (2, 7)",
    ),
    "wrong input": (
        "from torch import nn\ndef build(): return nn.Linear(5, 3)",
        "fails on an input of shape (2, 4): RuntimeError",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_file_that_does_not_fit(capsys: pytest.CaptureFixture[str], case: str) -> None:
    text, message = MODELS[case]
    Path("net.py").write_text(text)
    assert message in refused(capsys, "compare", "--data", "iris", "--model", "net.py:build", *TINY)


def test_a_recipe_that_finds_nothing_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "compare", "--data", "digits", "--model", "mlp", "--try", "evonorm", *TINY)
    assert "must have a 2-D normalisation" in message


def test_reproduce_at_the_smoke_scale_gives_no_verdict_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "reproduce",
        "gradient-noise",
        "--scale",
        "smoke",
        "--json",
        "-",
        "--out",
        "evidence",
        "--workers",
        "1",
    ]
    assert run(*arguments) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert (claim["slug"], claim["verdict"], claim["seeds"]) == ("gradient-noise", None, [0])
    assert {"name", "verdict", "metric", "arms", "difference", "interval"} == set(claim["checks"][0])
    evidence = json.loads(Path("evidence/smoke/gradient-noise.json").read_text())
    assert evidence["made_with"]["torch"]
    assert evidence["measurements"]
    assert load_evidence(Path("evidence/smoke/gradient-noise.json")) == evidence
    start = time.perf_counter()
    assert run(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["claims"] == [claim]  # to the second: it was not run again
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gradient-noize"], "unknown claim 'gradient-noize'; did you mean 'gradient-noise'?"),
        (["--room", "layer"], "unknown room 'layer'; did you mean 'layers'?"),
        (["phnn", "--scale", "huge"], "unknown scale 'huge'; known are: full, quick, smoke"),
        (["phnn", "--seeds", "x"], "seeds must be a number"),
        ([], "nothing to reproduce: name claims, or use --room or --all"),
        (["phnn", "--scale", "smoke", "--out", "/dev/null"], "cannot write to /dev/null: File exists; choose another"),
    ],
)
def test_what_reproduce_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, "reproduce", *arguments)


def test_catalogue_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("catalogue", "--json", "-") == 0
    slugs = {entry["slug"] for entry in json.loads(capsys.readouterr().out)}
    assert {"phnn", "evonorm", "quadratic-nets", "gradient-noise", "lottery-ticket", "random-pruning"} <= slugs
    assert run("catalogue", "--search", "hypercomplex", "--room", "layers") == 0
    assert "phnn" in (out := capsys.readouterr().out)
    assert "evonorm" not in out
    assert run("show", "phnn") == 0
    out = capsys.readouterr().out
    for text in ("2110.04176", "PHMLinear", ">>>", "--try phm", "Evidence"):
        assert text in out
    assert "unknown idea 'phn'; did you mean 'phnn'?" in refused(capsys, "show", "phn")
    assert "unknown room" in refused(capsys, "catalogue", "--room", "attic")


def test_show_writes_a_page_with_the_picture_of_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> go.Figure:
        return go.Figure(go.Scatter(x=[1, 2], y=[3, 4])).update_layout(title="Two <points>", xaxis_title="first")

    module = import_claim("ntk")
    monkeypatch.setattr(module, "draw", draw, raising=False)
    assert run("show", "ntk", "--page", str(tmp_path / "ntk.html")) == 0
    page = (tmp_path / "ntk.html").read_text()
    assert "Two &lt;points&gt;" in page
    assert "relative drift of the kernel" in page  # the curves of the evidence
    assert "netwright.kernels.ntk" in page


@pytest.mark.parametrize("arguments", [["--help"], ["catalogue"], ["show", "phnn"], ["--version"]])
def test_quick_verbs_do_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom netwright.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--debug", "show", "nothing") == 2
    assert "Traceback" in capsys.readouterr().err
