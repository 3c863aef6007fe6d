"""The verb that says why: ``explain``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netwright import checks
from netwright.cli.app import app
from netwright.cli.networks import load_data, names_of, network_of, tell
from netwright.cli.options import Json, Target, Weights, console_for

if TYPE_CHECKING:
    from torch.nn import Module

    from netwright.bench.explaining import Pictures
    from netwright.data.splits import Splits
    from netwright.explain.remote import Command, Endpoint


@app.command()
def explain(
    model: Annotated[
        str | None, typer.Argument(help="linear, mlp, cnn, resnet-tiny, vit-tiny, or FILE.py:FUNCTION.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A data set by name, FILE.csv, FILE.npz, or a folder of pictures.")
    ] = None,
    weights: Weights = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture to explain. Repeatable.")] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="For pictures, with commas: grad-cam,eigen-cam,counterfactual,guided-grad-cam,guided-backprop.",
        ),
    ] = "grad-cam,eigen-cam",
    layer: Annotated[str | None, typer.Option(help="For pictures: the layer to look into.")] = None,
    about: Annotated[
        str | None, typer.Option("--class", help="For pictures: explain this class instead of the answered one.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the test part to explain.")] = 6,
    top: Annotated[int | None, typer.Option(help="For tables: features that the rules may use.")] = None,
    command: Annotated[
        str | None, typer.Option(help="For tables: ask this command instead of a MODEL; rows come as CSV.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="For tables: ask this HTTP endpoint instead of a MODEL; rows come as JSON.")
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with a bearer token for --url.")
    ] = None,
    timeout: Annotated[str, typer.Option(help="For each answer of --command or --url: 60s, 5min.")] = "60s",
    retries: Annotated[int, typer.Option(help="How often a failed request to --url is repeated.")] = 2,
    max_rows: Annotated[int, typer.Option(help="For tables: most rows that the model is asked.")] = 20_000,
    mean: Annotated[
        str, typer.Option(help="For --image without --data: taken off each channel (black 0, white 1).")
    ] = "0",
    std: Annotated[str, typer.Option(help="For --image without --data: each channel is divided by it.")] = "1",
    target: Target = None,
    image_size: Annotated[int | None, typer.Option(help="Scale pictures to this height and width.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the division of the data and every draw.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the drawn pictures.")] = Path("netwright-explain"),
    report: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("netwright-explain.html"),
    json_to: Json = None,
) -> None:
    """Say why a network answers as it does: where it looks in pictures, by which rules it answers for tables."""
    from netwright.bench import explaining
    from netwright.bench.executors import parse_seconds
    from netwright.bench.pages import check_writable
    from netwright.data.splits import Task
    from netwright.explain.remote import without_secrets

    given = [name for name, value in (("MODEL", model), ("--command", command), ("--url", url)) if value is not None]
    if len(given) != 1:
        raise checks.InputError(
            f"say what to explain: a MODEL, --command or --url; got {' and '.join(given) or 'none of them'}"
        )
    if data is None and (model is None or not image):
        raise checks.InputError("say what is to be explained: --data, or --image for pictures")
    if token_env is not None and url is None:
        raise checks.InputError("--token-env is for --url; leave it out")
    console = console_for(json_to)
    check_writable(report)
    splits = None if data is None else load_data(data, seed, target=target, image_size=image_size)
    shown = {} if url is None else {url: without_secrets(url), f"--url={url}": f"--url={without_secrets(url)}"}
    words = {
        "model": model or command or shown[str(url)],
        "data": data or f"{len(image or [])} pictures",
        "weights": "" if weights is None else str(weights),
    }
    if model is not None and (splits is None or splits.task is Task.IMAGE_CLASSIFICATION):
        pictures: Pictures
        if splits is None:
            size = None if image_size is None else (image_size, image_size)
            pictures = explaining.from_files(
                image or [], size=size, mean=_numbers("mean", mean), std=_numbers("std", std)
            )
            network = _network_for(model, pictures, weights)
        else:
            network = network_of(model, splits, weights)
            if image:
                pictures = explaining.from_files(image, splits)
            else:
                pictures = explaining.from_test_part(network, splits, samples, seed)
        found = explaining.explain_pictures(
            network, pictures, names_of(method), layer, about,
            splits=splits, out=out, seed=seed, console=console, words=words,
        )  # fmt: skip
        console.print(f"pictures: {out.resolve()}", soft_wrap=True, highlight=False)
    else:
        assert splits is not None
        if image:
            raise checks.InputError("--image is for a MODEL of pictures; leave it out")
        source: Module | Command | Endpoint
        if model is not None:
            source = network_of(model, splits, weights)
        else:
            source = _remote(command, url, splits, parse_seconds(timeout), retries, token_env)
        found = explaining.explain_table(
            source, splits, top_k=top, samples=samples, max_rows=max_rows, seed=seed, console=console, words=words
        )
    for name in ("rules", "pictures"):
        for listing in (listing for section in found.sections if section.name == name for listing in section.listings):
            console.print(listing.table())
    tell(found, report, json_to, console, shown)


def _network_for(model: str, pictures: "Pictures", weights: Path | None) -> "Module":
    """A network that is built for pictures alone, without a data set."""
    from netwright.bench.weights import load_weights
    from netwright.models.baselines import build_from_file

    if ":" not in model:
        raise checks.InputError(f"model {model!r} is built for data: give its --data, or use FILE.py:FUNCTION")
    network = build_from_file(model, {"input_shape": tuple(pictures.inputs.shape[1:])})
    return network if weights is None else load_weights(network, weights)


def _remote(
    command: str | None, url: str | None, splits: "Splits", timeout: float, retries: int, token_env: str | None
) -> "Command | Endpoint":
    from netwright.bench.explaining import table_columns
    from netwright.explain.remote import Command, Endpoint

    columns = [column.name for column in table_columns(splits)]
    if command is not None:
        return Command(command, columns, splits.classes, timeout)
    headers = {}
    if token_env is not None:
        if not os.environ.get(token_env):
            raise checks.InputError(f"environment variable {token_env!r} of --token-env is not set")
        headers["Authorization"] = f"Bearer {os.environ[token_env]}"
    return Endpoint(str(url), columns, splits.classes, timeout, retries, headers=headers)


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise checks.InputError(f"--{name} must be numbers with commas between, got {text!r}") from None


__all__ = ["explain"]
