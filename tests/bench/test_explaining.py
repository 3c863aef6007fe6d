"""``netwright explain``: pictures with their maps, and whether these matter; rules in the user's units."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_model
from torch import Tensor, nn
from typer.testing import CliRunner

from netwright.bench import explaining
from netwright.bench.explaining.strips import strip
from netwright.bench.explaining.tables import user_rows
from netwright.checks import InputError
from netwright.cli import app
from netwright.data import Splits, load
from netwright.models.baselines import build_model
from netwright.training import Budget, fit

LOANS = """
import csv, sys
for row in csv.DictReader(sys.stdin):
    print("yes" if float(row["income"]) < 20000 and row["home"] != "own" else "no")
"""


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits", seed=0)


@pytest.fixture(scope="module")
def trained(digits: Splits) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("cnn", digits)
    fit(model, digits, Budget(epochs=3), seed=0)
    return model.eval()


@pytest.fixture(scope="module")
def loans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    rows = ["age,income,home,default"]
    for _ in range(500):
        income, home = rng.integers(8000, 60000), rng.choice(["own", "rent", "other"])
        rows.append(f"{rng.integers(18, 80)},{income},{home},{'yes' if income < 20000 and home != 'own' else 'no'}")
    path = tmp_path_factory.mktemp("loans") / "loans.csv"
    path.write_text("\n".join(rows))
    return path


def test_a_network_that_looks_at_one_corner_is_seen_to(digits: Splits) -> None:
    class Corner(nn.Module):
        """Answers 1 where the corner at the top left is bright, whatever else there is."""

        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.features = nn.Conv2d(1, 1, 1)
            self.features.weight.data.fill_(1.0)
            self.features.bias.data.fill_(0.0)  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            bright = self.relu(self.features(x))[:, 0, :4, :4].mean((1, 2))
            return torch.stack([-5 * bright, 5 * bright, *[torch.full_like(bright, -99.0)] * 8], 1)

    inputs = digits.test.inputs[:16].clone()
    inputs[:, :, :4, :4] += 3
    pictures = explaining.Pictures(tuple(map(str, range(16))), inputs, np.zeros((16, 1, 8, 8), np.uint8))
    found = explaining.explain_pictures(Corner(), pictures, ["guided-backprop", "grad-cam"])
    (by_pixels, _) = found["faithfulness"].findings
    assert "point at pixels that matter" in by_pixels.advice
    # a map that is the same for every place of the layer knows nothing
    assert found["pictures"].listings[0].rows[0][2] == "1"


def test_maps_of_an_untrained_network_are_not_praised(digits: Splits) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    for parameter in model[4].parameters():
        nn.init.zeros_(parameter)
    pictures = explaining.from_test_part(model, digits, 4)
    found = explaining.explain_pictures(model, pictures, ["eigen-cam"], splits=digits)
    assert "do not read anything into them" in found["faithfulness"].findings[0].advice


def test_pictures_show_mistakes_and_right_answers(trained: nn.Module, digits: Splits, tmp_path: Path) -> None:
    pictures = explaining.from_test_part(trained, digits, 6)
    with torch.no_grad():
        answers = trained(pictures.inputs).argmax(1)
    assert pictures.truths is not None
    assert 1 <= int((answers != pictures.truths).sum()) <= 3
    methods = list(explaining.METHODS)
    found = explaining.explain_pictures(trained, pictures, methods, splits=digits, out=tmp_path)
    assert len(found["faithfulness"].findings) == len(methods) - 1
    photographs = found["pictures"].photographs
    assert "wrong: it is" in photographs[0].caption
    assert len(list(tmp_path.glob("*.png"))) == 6
    drawn = np.asarray(Image.open(io.BytesIO(photographs[0].png)))
    assert drawn.shape == (192 + 16, (1 + 2 * len(methods)) * (192 + 6) - 6, 3)
    # the first tile is the picture itself, in its own brightness
    np.testing.assert_array_equal(drawn[16::24, :192:24, 0][:8], pictures.shown[0, 0])


def test_the_model_is_left_as_it_was(trained: nn.Module, digits: Splits) -> None:
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    gradients = [parameter.grad for parameter in trained.parameters()]
    explaining.explain_pictures(trained, explaining.from_test_part(trained, digits, 3), splits=digits)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(trained.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks for module in trained.modules())


def test_files_become_what_the_network_takes(digits: Splits, tmp_path: Path) -> None:
    own = digits.in_user_units(digits.test.inputs[:1])[0, 0]
    Image.fromarray((own / 16 * 255).round().to(torch.uint8).numpy()).save(tmp_path / "a.png")
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "b.png")
    found = explaining.from_files([tmp_path / "a.png", tmp_path / "b.png"], digits)
    torch.testing.assert_close(found.inputs[0], digits.test.inputs[0], atol=0.01, rtol=0)
    assert found.inputs.shape == (2, 1, 8, 8)
    assert found.shown[1].max() == 76  # red as gray
    alone = explaining.from_files([tmp_path / "b.png"], size=(4, 6), mean=(0.5, 0.5, 0.5), std=(0.25,))
    assert alone.inputs.shape == (1, 3, 4, 6)
    torch.testing.assert_close(alone.inputs[0, :, 0, 0], torch.tensor([2.0, -2.0, -2.0]))
    with pytest.raises(InputError, match="one number for each of 3 channels, got 2"):
        explaining.from_files([tmp_path / "b.png"], mean=(0.5, 0.5))
    with pytest.raises(InputError, match="height and width of pictures must be at least 1, got -3"):
        explaining.from_files([tmp_path / "b.png"], size=(-3, -3))


def test_bad_names_list_what_there_is(trained: nn.Module, digits: Splits) -> None:
    pictures = explaining.from_test_part(trained, digits, 2)
    with pytest.raises(InputError, match="unknown method 'gradcam'; did you mean 'grad-cam'"):
        explaining.explain_pictures(trained, pictures, ["gradcam"])
    with pytest.raises(InputError, match="number of methods must be at least 1, got 0"):
        explaining.explain_pictures(trained, pictures, [])
    with pytest.raises(InputError, match="unknown class '11'"):
        explaining.explain_pictures(trained, pictures, target="11")
    with pytest.raises(InputError, match=r"unknown layer.*'10'"):
        explaining.explain_pictures(trained, pictures, layer="100")
    with pytest.raises(InputError, match="no layer puts out features over places"):
        explaining.explain_pictures(build_model("mlp", digits), pictures)
    for shape in ((1,), ()):
        single = nn.Sequential(nn.Conv2d(1, 1, 8), nn.Flatten(), nn.Flatten() if shape else nn.Flatten(0))
        with pytest.raises(InputError, match=r"\(batch, classes\) of 2 classes or more, got \(2,"):
            explaining.explain_pictures(single, pictures)
    with pytest.raises(InputError, match="maps need pictures"):
        explaining.from_test_part(trained, load("iris"))


def test_a_constant_map_is_drawn() -> None:
    assert Image.open(io.BytesIO(strip(np.zeros((3, 300, 10), np.uint8), {"m": np.ones((300, 10))}))).height == 316


def test_columns_and_rows_are_those_of_the_file(loans: Path) -> None:
    splits = load(loans, target="default")
    columns = explaining.table_columns(splits)
    assert [column.name for column in columns] == ["age", "income", "home"]
    assert columns[2].levels == ("other", "own", "rent")
    rows = user_rows(splits.test.inputs.numpy(), splits, columns)
    lines = {tuple(line.split(",")[:3]) for line in loans.read_text().splitlines()[1:]}
    assert all((f"{age:g}", f"{income:.9g}", home) in lines for age, income, home in rows)


def test_names_of_columns_may_have_an_equals_sign(tmp_path: Path) -> None:
    lines = [f"{'uv'[i % 2]},{'uv'[i % 3 == 0]},{i},{'yes' if i % 3 else 'no'}" for i in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["a=b,a=c,d=e,answer", *lines]))
    splits = load(tmp_path / "t.csv", target="answer")
    columns = explaining.table_columns(splits)
    assert [(column.name, column.levels) for column in columns] == [
        ("a=b", ("u", "v")),
        ("a=c", ("u", "v")),
        ("d=e", ()),
    ]
    first, *_ = user_rows(splits.test.inputs.numpy(), splits, columns)
    assert first[:2] == ["uv"[int(first[2]) % 2], "uv"[int(first[2]) % 3 == 0]]


def test_values_are_sent_without_the_rounding_of_float32(tmp_path: Path) -> None:
    lines = [f"{i % 200},{'yes' if i % 3 else 'no'}" for i in range(400)]
    (tmp_path / "t.csv").write_text("\n".join(["count,answer", *lines]))
    splits = load(tmp_path / "t.csv", target="answer")
    rows = user_rows(splits.test.inputs.numpy(), splits, explaining.table_columns(splits))
    assert all(float(count).is_integer() for (count,) in rows)


def test_markup_of_others_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of columns and classes, and the command: neither HTML nor the terminal's."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{age},{'<u>yes</u>' if age < 40 else '[/no]'}" for age in range(100)]
    Path("d.csv").write_text("\n".join(["a<b>ge</b>,[/out]", *rows]))
    Path("p.py").write_text(
        "import csv, sys\nfor row in csv.reader(list(sys.stdin)[1:]):\n"
        "    print('<u>yes</u>' if float(row[0]) < 40 else '[/no]')\n"
    )
    arguments = ["--command", f"{sys.executable} p.py [/x] <i>it</i>", "--data", "d.csv", "--target", "[/out]"]
    done = CliRunner().invoke(app, ["explain", *arguments, "--samples", "1"])
    assert done.exit_code == 0, done.output
    assert "[/no]" in done.output
    page = Path("netwright-explain.html").read_text()
    assert "&lt;u&gt;yes" in page
    assert not any(tag in page for tag in ("<u>yes", "a<b>ge", "<i>it"))


def test_a_command_is_explained_by_its_own_rule(loans: Path, tmp_path: Path) -> None:
    (tmp_path / "predict.py").write_text(LOANS)
    done = CliRunner().invoke(
        app,
        ["explain", "--command", f"{sys.executable} {tmp_path / 'predict.py'}", "--data", str(loans), "--target",
         "default", "--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json"), "--samples", "3"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "r.json").read_text())["sections"]
    assert found["features"]["findings"]["agreement of the rules"]["value"] > 0.95
    rules = {row[0]: row[1] for row in found["rules"]["tables"][0]["rows"]}
    assert "home is not own" in rules["yes"]
    limit = float(rules["yes"].split("income ≤ ")[1].split(" and ")[0].replace(",", ""))
    assert 19_000 < limit < 21_000
    sent = dict(found["sent"]["tables"][0]["rows"])
    assert sent["columns"] == "age, income, home"
    assert sent["rows"] >= 200
    assert len(found["samples"]["tables"][0]["rows"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlp"], "say what is to be explained"),
        (["--data", "iris"], "got none of them"),
        (["mlp", "--url", "http://x/", "--data", "iris"], "MODEL and --url"),
        (["--url", "ftp://x/", "--data", "iris"], "must start with http"),
        (["--url", "http://x/", "--token-env", "NO_SUCH_TOKEN", "--data", "iris"], "NO_SUCH_TOKEN"),
        (["--command", "true", "--token-env", "X", "--data", "iris"], "--token-env is for --url"),
        (["mlp", "--data", "iris", "--image", "none.png"], "--image is for a MODEL of pictures"),
        (["--command", "true", "--data", "digits"], "rules need a table"),
        (["mlp", "--data", "diabetes"], "data is for regression"),
        (["cnn", "--image", "none.png"], "built for data"),
        (["cnn", "--data", "digits", "--samples", "1", "--out", "none.png"], "cannot write to none.png"),
        (["--command", "true", "--data", "iris", "--samples", "-1"], "number of samples must be at least 0"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("none.png")
    result = CliRunner().invoke(app, ["explain", *arguments])
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output


def test_a_picture_without_data(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape):\n"
        "    body = nn.Conv2d(input_shape[0], 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*body, nn.Linear(8, 5))\n"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    save_model(model, "w.safetensors")
    Image.effect_mandelbrot((30, 20), (-2, -1, 1, 1), 50).convert("RGB").save("m.png")
    arguments = ["explain", "net.py:build", "--weights", "w.safetensors", "--image", "m.png", "--mean", "0.5"]
    done = CliRunner().invoke(app, [*arguments, "--layer", "1", "--class", "3"])
    assert done.exit_code == 0, done.output
    assert "data:image/png;base64," in Path("netwright-explain.html").read_text()
    assert [path.name for path in Path("netwright-explain").iterdir()] == ["000-m.png"]
