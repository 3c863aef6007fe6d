"""Run benchmarks and write their rows into docs/performance.md: `python -m benchmarks layers analysis.collapse`."""

import re
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from benchmarks import timing

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEAD = ["| what | | against | ratio | target | |", "|---|---|---|---|---|---|"]


def measured(name: str) -> list[str]:
    """Rows of everything that the benchmark ``room.file`` measures."""
    timing.rows.clear()
    print(f"\n== {name}")
    import_module(f"benchmarks.{name}").main()
    lines = []
    for row in timing.rows:
        target = "" if row.target is None else f"≤ {row.target:.2f}×"
        cells = (f"`{name}`: {row.title}", row.candidate, row.baseline, f"{row.ratio:.2f}×", target, row.verdict)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def benchmarks_of(room: str) -> list[str]:
    """The names ``room.file`` of a room, or of one file of it."""
    if "." in room:
        return [room]
    return [f"{room}.{module.name}" for module in iter_modules(import_module(f"benchmarks.{room}").__path__)]


def main() -> None:
    for asked in sys.argv[1:]:
        room = asked.partition(".")[0]
        marked = re.compile(f"(<!-- measured: {room} -->\n)(.*?)(<!-- end -->)", re.DOTALL)
        if not marked.search(PAGE.read_text(encoding="utf-8")):
            sys.exit(f"{PAGE.name} has no place '<!-- measured: {room} -->' … '<!-- end -->' for a table")
        for name in benchmarks_of(asked):
            lines = measured(name)
            page = PAGE.read_text(encoding="utf-8")
            old = marked.findall(page)[0][1].splitlines()[len(HEAD) :]
            kept = [line for line in old if not line.startswith(f"| `{name}`:")]
            # the files of a room in the order of their names
            table = "\n".join([*HEAD, *sorted(kept + lines, key=lambda line: line.split("`")[1])])
            PAGE.write_text(
                marked.sub(lambda found, text=table: f"{found[1]}{text}\n{found[3]}", page), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
