"""The verb that works on recordings: ``cancel-echo``."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from netwright.cli.app import app
from netwright.cli.options import Json, console_for, write_json


@app.command("cancel-echo")
def cancel_echo(
    mic: Annotated[Path, typer.Argument(metavar="MIC.wav", help="What the microphone heard.")],
    loopback: Annotated[
        Path, typer.Argument(metavar="LOOPBACK.wav", help="What was sent to the loudspeaker in that time.")
    ],
    weights: Annotated[Path, typer.Option(help="A trained echo canceller: FILE.safetensors, as save_aec writes it.")],
    out: Annotated[Path, typer.Option(help="Where the voice is written.")] = Path("clean.wav"),
    json_to: Json = None,
) -> None:
    """Take the loudspeaker's echo, and noise, out of a microphone's recording."""
    from netwright.bench.pages import check_writable
    from netwright.bench.progress import progress_bar
    from netwright.models.signals.wav import cancel_echo_wav

    console = console_for(json_to)
    check_writable(out, "--out")
    started = time.perf_counter()
    with progress_bar(console) as progress:
        task = progress.add_task("removing echo", total=1.0)
        done = cancel_echo_wav(
            mic, loopback, weights, out, observer=lambda share: progress.update(task, completed=share)
        )
    took = time.perf_counter() - started
    for note in done.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{done.seconds:.1f} s at {done.sample_rate:,} Hz in {took:.1f} s; "
        f"{done.level_change_db:+.1f} dB against the microphone\nwritten: {out.resolve()}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    write_json({**asdict(done), "out": str(out.resolve()), "took_seconds": took}, json_to)


__all__ = ["cancel_echo"]
