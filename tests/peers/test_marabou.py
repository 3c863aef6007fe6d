"""Our verdicts against those of Marabou, a complete verifier."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.verify.decide import decide
from netwright.verify.property import robustness
from netwright.verify.verdict import Verdict

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
Marabou = pytest.importorskip("maraboupy.Marabou")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


@pytest.mark.parametrize("radius", [0.02, 0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_verdicts(model: nn.Module, tmp_path: Path, radius: float, seed: int) -> None:
    x = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    label = int(model(x).argmax())
    ours = decide(model, robustness(x, label, radius, classes=3), input_shape=(5,), time_limit=60).verdict
    torch.onnx.export(model, (x[None],), tmp_path / "net.onnx", dynamo=True, verbose=False)
    violated = False
    for other in set(range(3)) - {label}:
        network = Marabou.read_onnx(str(tmp_path / "net.onnx"))
        inputs, outputs = network.inputVars[0].flatten(), network.outputVars[0].flatten()
        for variable, value in zip(inputs, x.tolist(), strict=True):
            network.setLowerBound(variable, value - radius)
            network.setUpperBound(variable, value + radius)
        # a counterexample: the other class is at least as large
        network.addInequality([outputs[label], outputs[other]], [1.0, -1.0], 0.0)
        answer, _, _ = network.solve(verbose=False, options=Marabou.createOptions(verbosity=0, timeoutInSeconds=60))
        violated |= answer == "sat"
    assert ours is (Verdict.VIOLATED if violated else Verdict.HOLDS)
