"""Tests of the recipe ``gpsa``."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.layers.attention import AsMultiheadAttention, Attention
from netwright.layers.gpsa import GPSA
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain


class Transformer(nn.Module):
    """A network of a user's own: torch's encoder on the pixels, and the mean of the tokens."""

    def __init__(self, batch_first: bool = True, tokens: int = 64) -> None:
        super().__init__()
        self.batch_first, self.tokens = batch_first, tokens
        self.embed = nn.Linear(1, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(1)[:, : self.tokens, None])
        if self.batch_first:
            return self.head(self.encoder(tokens).mean(1))
        return self.head(self.encoder(tokens.transpose(0, 1)).mean(0))


def test_the_first_share_of_the_attention_layers_becomes_local() -> None:
    splits = load("digits")
    plain = build_model("vit-tiny", splits)
    model = parse_chain("gpsa").build(plain, splits)
    kinds = [type(m) for m in model.modules() if isinstance(m, GPSA | Attention)]
    assert kinds == [GPSA] * 3 + [Attention]
    assert [m.prefix_tokens for m in model.modules() if isinstance(m, GPSA)] == [1] * 3
    model = parse_chain("gpsa[share=0.25,locality_strength=3]").build(plain, splits)
    assert [m.locality_strength for m in model.modules() if isinstance(m, GPSA)] == [3.0]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_encoder(batch_first: bool) -> None:
    splits = load("digits")
    model = parse_chain("gpsa[share=0.5]").build(Transformer(batch_first), splits)
    kinds = [type(layer.self_attn) for layer in model.encoder.layers]
    assert kinds == [AsMultiheadAttention, nn.MultiheadAttention]
    inputs = splits.test.inputs[:4]
    for training in (True, False):
        model.train(training)
        assert model(inputs).shape == (4, 10)
    with torch.no_grad():
        assert torch.isfinite(model(inputs)).all()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_what_does_not_fit() -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match=r"recipe 'gpsa' replaces self-attention .*; the network uses none"):
        parse_chain("gpsa").build(build_model("cnn", splits), splits)
    with pytest.raises(ValueError, match=r"patches in a square, .*; 'encoder.layers.0.self_attn' gets 60 tokens"):
        parse_chain("gpsa").build(Transformer(tokens=60), splits)
    with pytest.raises(ValueError, match=r"option 'share' of recipe 'gpsa' must be in \(0, 1\], got 1.5"):
        parse_chain("gpsa[share=1.5]").build(build_model("vit-tiny", splits), splits)
    with pytest.raises(ValueError, match="option 'locality_strength' of recipe 'gpsa' must be positive"):
        parse_chain("gpsa[locality_strength=0]").build(build_model("vit-tiny", splits), splits)


FILE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.embed(nn.functional.unfold(x, 2, stride=2).transpose(1, 2))
        return self.head((tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))
"""


def test_combines_with_other_recipes_and_runs_through_compare(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FILE)
    chain = "phm[n=2]+gpsa+lottery-ticket[rounds=1]"
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", f"{tmp_path}/net.py:Net", [chain], seeds=(0,), budget="4steps", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
