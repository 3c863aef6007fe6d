"""Run all benchmarks of some rooms and write their table into docs/performance.md: `python -m benchmarks layers`."""

import re
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from benchmarks import timing

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def table(room: str) -> str:
    """Markdown table of everything that the benchmarks of ``room`` measure."""
    lines = ["| what | | against | ratio | target | |", "|---|---|---|---|---|---|"]
    package = import_module(f"benchmarks.{room}")
    for module in iter_modules(package.__path__):
        timing.rows.clear()
        name = f"{room}.{module.name}"
        print(f"\n== {name}")
        import_module(f"benchmarks.{name}").main()
        for row in timing.rows:
            target = "" if row.target is None else f"≤ {row.target:.2f}×"
            cells = (f"`{name}`: {row.title}", row.candidate, row.baseline, f"{row.ratio:.2f}×", target, row.verdict)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for room in sys.argv[1:]:
        marked = re.compile(f"(<!-- measured: {room} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(page):
            sys.exit(f"{PAGE.name} has no place '<!-- measured: {room} -->' … '<!-- end -->' for a table")
        measured = table(room)
        page = marked.sub(lambda found, text=measured: found[1] + text + "\n" + found[2], page)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
