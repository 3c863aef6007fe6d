"""Ctrl-C in a real process: what is finished is kept, and the same command goes on."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "netwright", "compare", "--data", "digits", "--budget", "6epochs", "--workers", "2"]


def finished(store: Path) -> int:
    try:
        return int(sqlite3.connect(store).execute("SELECT count(*) FROM cells").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_control_c_keeps_finished_cells_and_the_same_command_goes_on(tmp_path: Path) -> None:
    store = tmp_path / ".netwright" / "runs.db"
    environment = os.environ | {"COLUMNS": "120"}
    command = [*COMMAND, "--seeds", "8"]
    first = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        # what a shell starts in the background, these tests for instance, has Ctrl-C switched off, and so its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while finished(store) == 0 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    kept = finished(store)
    assert first.returncode == 1
    assert 1 <= kept < 8
    assert f"stopped: {kept} of 8 cells are finished and kept; run the same command to go on" in errors
    assert "Traceback" not in errors

    times = sqlite3.connect(store).execute("SELECT key, finished FROM cells").fetchall()
    again = subprocess.run(
        command, cwd=tmp_path, capture_output=True, env=environment, text=True, check=True, timeout=120
    )
    assert "8 seeds" in again.stdout
    assert finished(store) == 8
    assert set(times) <= set(sqlite3.connect(store).execute("SELECT key, finished FROM cells").fetchall())
