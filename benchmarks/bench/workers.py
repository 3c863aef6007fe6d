"""The two comparisons of ``make demo`` with two workers against one.

*Throughput* is that of the comparison itself, the start of its workers included as far as it is not over when the
command has read its own libraries. *Whole command* is what a user's clock shows, with some six seconds of reading
libraries and writing the report that no worker can shorten.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAKEFILE = Path(__file__).parents[2] / "Makefile"

# the command line in a fresh process, with a clock around the comparison
TIMED = """
import sys, time
from netwright import cli
from netwright.bench.processes import worker_context
if "2" in sys.argv[-1]:
    worker_context()
from netwright.bench import compare as bench
plain = bench.compare
def timed(*arguments, **options):
    start = time.perf_counter()
    result = plain(*arguments, **options)
    print(time.perf_counter() - start, file=sys.stderr)
    return result
bench.compare = timed
cli.main(sys.argv[1:])
"""


def commands() -> list[list[str]]:
    """What ``make demo`` runs, as arguments of the command line."""
    recipe = MAKEFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^\t(\$\(BIN\)/netwright compare .*)$", recipe, re.MULTILINE)]


def seconds(arguments: list[str], workers: int) -> tuple[float, float]:
    """Time of the comparison, and of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "timed.py"
        script.write_text(f"if __name__ == '__main__':\n    exec({TIMED!r})\n", encoding="utf-8")
        command = [sys.executable, str(script), *arguments, "--workers", str(workers)]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        return float(done.stderr.split()[-1]), time.perf_counter() - start


def main() -> None:
    for arguments in commands():
        (one, whole_one), (two, whole_two) = (seconds(arguments, workers) for workers in (1, 2))
        print(f"{arguments[4]}: comparison {one:.1f} s with 1 worker, {two:.1f} s with 2")
        print(f"  throughput     {one / two:.2f}×  target ≥ 1.70  {'met' if one / two >= 1.7 else 'MISSED'}")
        print(f"  whole command  {whole_one / whole_two:.2f}×  ({whole_one:.1f} s and {whole_two:.1f} s)")


if __name__ == "__main__":
    main()
