"""The verbs that look at one network: ``inspect``, ``plan``, ``verify`` and ``shrink``."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netwright import checks
from netwright.cli.app import FAILED, app
from netwright.cli.options import Data, Json, Model, Target, Weights, console_for, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from torch.nn import Module

    from netwright.bench.findings import Findings
    from netwright.data.splits import Splits


@app.command()
def inspect(
    model: Model,
    data: Data,
    weights: Weights = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="A second network to compare with: weights of the same model, or a model."),
    ] = None,
    against_weights: Annotated[Path | None, typer.Option(help="Weights of --against, if that is a model.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Sections, with commas: cost,calibration,units,collapse,complexity,landscape,similarity.",
        ),
    ] = None,
    target: Target = None,
    image_size: Annotated[int | None, typer.Option(help="Scale pictures of a folder to this height and width.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the division of the data and every draw.")] = 0,
    report: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("netwright-inspect.html"),
    json_to: Json = None,
) -> None:
    """Measure what a trained network is like inside, and say how to read it."""
    from netwright.bench.inspection import inspect as measure
    from netwright.bench.pages import check_writable

    console = console_for(json_to)
    check_writable(report)
    splits = load_data(data, seed, target=target, image_size=image_size)
    network = network_of(model, splits, weights)
    other = None if against is None else _other(against, model, splits, against_weights)
    words = {"model": model, "data": data, "weights": "" if weights is None else str(weights), "against": against or ""}
    if weights is None:
        console.print("no --weights: the network is inspected as it is built, untrained", highlight=False)
    found = measure(network, splits, against=other, only=names_of(only), seed=seed, console=console, words=words)
    tell(found, report, json_to, console)


@app.command()
def plan(
    model: Model,
    data: Data,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Sections, with commas: initialisation,depth,limit,width.")
    ] = None,
    target: Target = None,
    image_size: Annotated[int | None, typer.Option(help="Scale pictures of a folder to this height and width.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the first weights, the division of the data and every draw.")] = 0,
    report: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("netwright-plan.html"),
    json_to: Json = None,
) -> None:
    """Say before training what theory predicts: initialisation, depth, what the kernel limit scores, data, width."""
    from netwright.bench.pages import check_writable
    from netwright.bench.planning import check_data
    from netwright.bench.planning import plan as predict

    console = console_for(json_to)
    check_writable(report)
    splits = load_data(data, seed, target=target, image_size=image_size)
    check_data(splits)
    network = network_of(model, splits, None, seed)
    words = {"model": model, "data": data}
    found = predict(network, splits, only=names_of(only), seed=seed, console=console, words=words)
    tell(found, report, json_to, console)


@app.command()
def verify(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="FILE.onnx, or a model as in compare: FILE.py:FUNCTION, mlp, …")
    ] = None,
    properties: Annotated[
        list[Path] | None, typer.Option("--property", help="A VNN-LIB file, also .gz. Repeatable.")
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="Does the class stay within this radius of samples? In units of the normalised inputs."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of samples of the test part for --radius.")] = 10,
    data: Annotated[str | None, typer.Option(help="A data set by name, FILE.csv, FILE.npz, or a folder.")] = None,
    weights: Weights = None,
    target: Target = None,
    image_size: Annotated[int | None, typer.Option(help="Scale pictures of a folder to this height and width.")] = None,
    time_limit: Annotated[str, typer.Option(help="For each property: 60s, 5min.")] = "60s",
    seed: Annotated[int, typer.Option(help="Decides which samples are drawn, or the network of --selftest.")] = 0,
    result: Annotated[
        Path | None, typer.Option(help="Where the result of a single --property goes, in the competition's format.")
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Try the verifiers themselves, on planted counterexamples.")
    ] = False,
    report: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("netwright-verify.html"),
    json_to: Json = None,
) -> None:
    """Prove that a ReLU network has a property, or find an input that violates it."""
    if selftest:
        _selftest(context, seed, report, json_to)
        return
    if model is None:
        raise checks.InputError("say which MODEL to verify, or try the verifiers themselves with --selftest")
    from netwright.bench import verifying as bench
    from netwright.bench.executors import parse_seconds
    from netwright.bench.pages import check_writable
    from netwright.verify.vnnlib import read_vnnlib, result_text

    files = properties or []
    if bool(files) == (radius is not None):
        raise checks.InputError("say what to verify: --property FILE.vnnlib, or --radius with --data")
    if result is not None and len(files) != 1:
        raise checks.InputError("--result is for a single --property")
    console = console_for(json_to)
    check_writable(report)
    splits = None if data is None else load_data(data, seed, target=target, image_size=image_size)
    network, shape = _to_verify(model, splits, weights)
    if radius is not None:
        if splits is None:
            raise checks.InputError("--radius is about samples: give their --data")
        questions = bench.around_samples(network, splits, radius, samples, seed)
    else:
        questions = [bench.Question(file.name, read_vnnlib(file)) for file in files]
    limit = parse_seconds(time_limit)
    answers = list(bench.verify(network, questions, shape, time_limit=limit, console=console))
    bench.write_report(answers, report, model=model, command=shlex.join(["netwright", *sys.argv[1:]]))
    console.print(bench.table(answers))
    console.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)
    if result is not None:
        (answer,) = answers
        result.write_text(result_text(answer.result.verdict, answer.result.witness, answer.outputs) + "\n")
    write_json({"answers": [answer.to_json() for answer in answers]}, json_to)


def _selftest(context: typer.Context, seed: int, report: Path, json_to: str | None) -> None:
    """``verify --selftest``, which makes its own network and takes nothing that is about another."""
    from netwright.bench import selftest as bench
    from netwright.bench.pages import check_writable

    given = [
        "MODEL" if parameter.param_type_name == "argument" else parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("selftest", "seed", "report", "json_to")
        and getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise checks.InputError(f"--selftest makes its own network and properties: leave out {', '.join(given)}")
    console = console_for(json_to)
    check_writable(report)
    found = bench.selftest(seed=seed, console=console)
    bench.write_report(found, report, command=shlex.join(["netwright", *sys.argv[1:]]))
    console.print(found.table())
    console.print(found.verdict, style=None if found.sound and found.caught else "bold red", highlight=False)
    console.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)
    write_json(found.to_json(), json_to)
    if not (found.sound and found.caught):
        raise typer.Exit(FAILED)


@app.command()
def shrink(
    model: Model,
    data: Data,
    weights: Weights = None,
    beta: Annotated[
        float, typer.Option(help="Merge units whose weights differ by at most this share of the largest difference.")
    ] = 0.1,
    target: Target = None,
    image_size: Annotated[int | None, typer.Option(help="Scale pictures of a folder to this height and width.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the division of the data.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the smaller network is written.")] = Path("small.safetensors"),
    json_to: Json = None,
) -> None:
    """Make a trained network smaller by merging its similar units, without any training."""
    from netwright.bench.pages import check_writable
    from netwright.bench.shrink import shrink as run

    if weights is None:
        raise checks.InputError("shrink works on a trained network: give its --weights")
    check_writable(out, "--out")
    splits = load_data(data, seed, target=target, image_size=image_size)
    console = console_for(json_to)
    found = run(network_of(model, splits, weights), splits, beta=beta, out=out)
    console.print(found.table())
    console.print(
        f"written: {out.resolve()}\nload it with netwright.compression.feature_merging.load_merged(your_model, file), "
        f"or look at it: netwright inspect {shlex.join([model, '--weights', str(out), '--data', data])}",
        soft_wrap=True,
        highlight=False,
    )
    write_json(found.to_json(), json_to)


def _to_verify(model: str, splits: "Splits | None", weights: Path | None) -> "tuple[Module, tuple[int, ...]]":
    """A network and the shape of its inputs, from an ONNX file or as the other verbs take it."""
    if Path(model).suffix == ".onnx":
        from netwright.verify.onnx_files import read_onnx

        found = read_onnx(model)
        if splits is not None and found.input_shape != splits.input_shape:
            checks.fail(
                f"the inputs of {model} must have the shape of the data {splits.input_shape}", found.input_shape
            )
        return found.module, found.input_shape
    if splits is None:
        raise checks.InputError(f"{model} is built for data: give its --data")
    if weights is None:
        raise checks.InputError("a property of an untrained network says nothing: give its --weights")
    return network_of(model, splits, weights).eval(), splits.input_shape


def tell(
    found: "Findings", report: Path, json_to: str | None, console: "Console", shown_as: dict[str, str] | None = None
) -> None:
    """Findings into the report, the terminal and, if asked for, JSON; a section that failed makes the verb fail.

    ``shown_as`` says what to write for arguments that may hold a secret.
    """
    from netwright.bench.findings_report import write_report

    typed = [(shown_as or {}).get(argument, argument) for argument in sys.argv[1:]]
    write_report(found, report, command=shlex.join(["netwright", *typed]))
    console.print(found.table())
    console.print(f"report: {report.resolve()}", soft_wrap=True, highlight=False)
    write_json(found.to_json(), json_to)
    if found.failed:
        raise typer.Exit(FAILED)


def load_data(data: str, seed: int, **options: Any) -> "Splits":
    """Data as the user named it; options that are ``None`` were not given."""
    from netwright.data import load

    return load(data, seed=seed, **{name: value for name, value in options.items() if value is not None})


def names_of(only: str | None) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in (only or "").split(",") if name.strip()]


def network_of(model: str, splits: "Splits", weights: Path | None, seed: int = 0) -> "Module":
    """A network as the user named it, with its weights."""
    import torch

    from netwright.bench.weights import load_weights
    from netwright.models.baselines import build_model

    torch.manual_seed(seed)
    network = build_model(model, splits)
    return network if weights is None else load_weights(network, weights)


def _other(against: str, model: str, splits: "Splits", weights: Path | None) -> "Module":
    """The network to compare with: weights of the same model, or a model of its own."""
    if Path(against).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        if weights is not None:
            raise checks.InputError(f"--against {against} names weights, so --against-weights has no use")
        return network_of(model, splits, Path(against))
    return network_of(against, splits, weights)


__all__ = ["inspect", "load_data", "names_of", "network_of", "plan", "shrink", "tell", "verify"]
