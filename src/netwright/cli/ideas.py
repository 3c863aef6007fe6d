"""The verbs that read the ideas: ``catalogue`` and ``show``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from netwright import checks
from netwright.cli.app import app
from netwright.cli.options import Json, console_for, write_json

# columns of a terminal from which on there is room for a sentence beside the names
_WIDE = 130


@app.command()
def catalogue(
    room: Annotated[str | None, typer.Option(help="Only this room.")] = None,
    search: Annotated[str | None, typer.Option(help="Only ideas with all of these words.")] = None,
    json_to: Json = None,
) -> None:
    """List the ideas: what each is called, which recipe puts it into a network, and what became of its claim."""
    from rich import box
    from rich.table import Table

    from netwright.bench.catalogue import catalogue as read

    entries = list(read().values())
    if room is not None:
        checks.known("room", room, {entry.claim.room for entry in entries})
        entries = [entry for entry in entries if entry.claim.room == room]
    if search is not None:
        entries = [entry for entry in entries if entry.matches(search)]
    console = console_for(json_to)
    wide = console.width >= _WIDE
    table = Table(
        title=f"{len(entries)} ideas", box=box.SIMPLE_HEAD, title_justify="left",
        caption=None if wide else "a wider terminal also shows what each says; `netwright show NAME` does, too",
    )  # fmt: skip
    for heading in ("idea", "room", "year", *(["what it says"] if wide else []), "recipe (--try)", "claim"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("idea", "room", "year", "claim"))
    for entry in sorted(entries, key=lambda entry: (entry.claim.room, entry.claim.slug)):
        claim = entry.claim
        recipes = ", ".join(recipe.name for recipe in entry.recipes)
        says = [claim.says] if wide else []
        table.add_row(claim.slug, claim.room, str(claim.year), *says, recipes, entry.verdict)
    console.print(table)
    write_json([entry.to_json() for entry in entries], json_to)


@app.command()
def show(
    slug: Annotated[str, typer.Argument(help="Name of an idea, as the catalogue lists it.")],
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a page with a picture of it and its curves.")
    ] = None,
    json_to: Json = None,
) -> None:
    """Show one idea: what it says, how to use it, and the evidence."""
    from netwright.bench.catalogue import catalogue as read
    from netwright.bench.catalogue import usage_example

    entries = read()
    checks.known("idea", slug, entries)
    entry = entries[slug]
    claim = entry.claim
    console = console_for(json_to)
    source = f"{claim.year}, arXiv:{claim.arxiv}" if claim.arxiv else str(claim.year)
    console.print(f"[bold]{claim.title}[/] ({source})\n{claim.says}\n")
    console.print("[bold]Parts[/]\n" + "\n".join(f"  netwright.{part}" for part in claim.parts), highlight=False)
    example = usage_example(claim.parts[0]) if claim.parts else ""
    if example:
        module, _, name = claim.parts[0].rpartition(".")
        console.print(f"\n[bold]Example[/]\n  >>> from netwright.{module} import {name}", highlight=False)
        console.print("\n".join(f"  {line}" for line in example.splitlines()), highlight=False, markup=False)
    for recipe in entry.recipes:
        console.print(f"\n[bold]Recipe[/] {recipe.name}: {recipe.summary}")
        console.print(f"  netwright compare --data digits --model mlp --try {recipe.name}", highlight=False)
    for scale, found in entry.evidence.items():
        console.print(f"\n[bold]Evidence[/] ({scale}, {len(found['seeds'])} seeds): {found['verdict']}")
        for check in found["checks"]:
            means = ", ".join(f"{arm} {value['mean']:.4g}" for arm, value in check["arms"].items())
            line = f"  {check['verdict']}: {check['name']} ({check['metric']}: {means})"
            console.print(line, highlight=False, markup=False)
    if claim.note:
        console.print(f"\n{claim.note}")
    if page is not None:
        from netwright.bench.idea_page import write_idea_page
        from netwright.bench.pages import check_writable

        check_writable(page, "--page")
        with console.status("drawing"):
            write_idea_page(entry, page, command=shlex.join(["netwright", *sys.argv[1:]]))
        console.print(f"\npage: {page.resolve()}", soft_wrap=True, highlight=False)
    write_json(entry.to_json() | {"example": example, "evidence": entry.evidence}, json_to)


__all__ = ["catalogue", "show"]
