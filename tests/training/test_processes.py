"""``fit`` with two processes: the same weights as with one, in both."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import torch
from netwright.data import load
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Settings, fit, make_fabric

torch.set_num_threads(1)
processes = int(sys.argv[1])
fabric = make_fabric(devices=processes, strategy="ddp" if processes > 1 else "auto")
torch.manual_seed(0)
model = MLP(64, (16,), 10)
history = fit(model, load("digits"), Budget(steps=12), settings=Settings(lr=0.01), fabric=fabric, seed=1)
torch.save([p.detach() for p in model.parameters()], f"{sys.argv[2]}/{processes}-{fabric.global_rank}.pt")
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    import torch

    (tmp_path / "script.py").write_text(SCRIPT)
    for processes in ("1", "2"):
        command = [sys.executable, str(tmp_path / "script.py"), processes, str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for a, b, c in zip(one, first, second, strict=True):
        torch.testing.assert_close(b, c, rtol=0, atol=0)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
