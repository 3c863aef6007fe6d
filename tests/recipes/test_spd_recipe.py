"""Tests of the recipes ``cov-pool`` and ``gbw-norm``, and of ``netwright.layers.covariance_pooling``."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.compression.masks import prunable
from netwright.data import load
from netwright.layers.covariance_pooling import CovariancePooling, to_covariance_pooling
from netwright.layers.spd import spd_log
from netwright.layers.spd_layers import BiMap, CovPool
from netwright.layers.spd_norm import GBWBatchNorm
from netwright.models.baselines import build_model
from netwright.models.signals.spdnet import SPDNet
from netwright.models.vision.resnet import resnet_cifar
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, make_fabric


class ByHand(nn.Module):
    """Pools in ``forward``, as many networks do."""

    def __init__(self, activation: bool, view: bool = False) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Linear(12, 10)
        self.activation, self.view = activation, view

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)) if self.activation else functional.relu(self.conv(x))
        x = functional.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(-1, 12) if self.view else x.flatten(1))


def pooled(*tail: nn.Module, features: int = 12) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), *tail, nn.Flatten(), nn.Linear(features, 10)
    )


@pytest.mark.parametrize(
    "model",
    [
        pooled(nn.AdaptiveAvgPool2d(1)),
        pooled(nn.AvgPool2d(6)),
        pooled(nn.MaxPool2d(2), features=108),
        pooled(nn.AdaptiveMaxPool2d(1), nn.Dropout(0.5)),
        pooled(features=432),
        nn.Sequential(pooled(nn.AdaptiveAvgPool2d(1)), nn.ReLU(), nn.Linear(10, 10)),
        ByHand(activation=True),
        resnet_cifar(8, 4, in_channels=1),
    ],
    ids=["average", "fixed average", "maximum of parts", "maximum", "flatten", "deep head", "by hand", "resnet"],
)
def test_the_last_map_is_found_and_the_classifier_reads_its_covariance(model: nn.Module) -> None:
    x = torch.randn(4, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = to_covariance_pooling(model, x[:2], n=5, eps=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    seen: dict[str, Tensor] = {}
    (pooling,) = (module for module in new.modules() if isinstance(module, CovariancePooling))
    linear = next(module for module in new.modules() if isinstance(module, nn.Linear))
    handles = [
        pooling.register_forward_hook(lambda module, inputs, output: seen.update(map=inputs[0])),
        linear.register_forward_hook(lambda module, inputs, output: seen.update(features=inputs[0])),
    ]
    new.eval()
    assert new(x).shape == (4, 10)
    for handle in handles:
        handle.remove()
    bimap = pooling.spd[1]
    expected = spd_log(bimap(CovPool(1e-3)(seen["map"]))).flatten(1).float()
    torch.testing.assert_close(seen["features"], expected)


def test_an_activation_that_is_no_module_and_a_fixed_reshape_are_refused() -> None:
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="an activation in between has to be a module of its own"):
        to_covariance_pooling(ByHand(activation=False), x)
    with pytest.raises(ValueError, match="covariance pooling gives 144 features instead of 12, with which the network"):
        to_covariance_pooling(ByHand(activation=True, view=True), x)
    with pytest.raises(ValueError, match="needs a feature map of at least 2 positions"):
        to_covariance_pooling(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x)


def test_chains() -> None:
    data = load("digits")
    plain = build_model("cnn", data)
    model = parse_chain("cov-pool[n=8]+gbw-norm[power=0.5]").build(plain, data)
    (bimap,) = (module for module in model.modules() if isinstance(module, BiMap))
    (norm,) = (module for module in model.modules() if isinstance(module, GBWBatchNorm))
    assert (bimap.n_out, norm.n, norm.power, bimap.free, norm.free) == (8, 8, 0.5, True, True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(prunable(model)) == 4  # three convolutions and the classifier
    phm = parse_chain("phm+cov-pool+gbw-norm+gradient-noise")  # a rule of another recipe has its place
    model = phm.build(plain, data)
    settings = Settings(lr=0.01)
    trainer = Trainer(data, Budget(steps=4), settings, seed=0, fabric=make_fabric(), make_rule=phm.make_rule)
    (norm,) = (module for module in model.modules() if isinstance(module, GBWBatchNorm))
    trainer.fit(model)
    assert norm.weight.any()
    assert norm.metric is not None
    assert norm.metric.any()


def test_gbw_norm_goes_into_networks_on_spd_matrices_and_says_what_it_needs() -> None:
    data = load("digits")
    model = parse_chain("gbw-norm").build(SPDNet((9, 6, 4), 10), data)
    norms = [module for module in model.modules() if isinstance(module, GBWBatchNorm)]
    assert [(norm.n, norm.free, norm.weight.dtype) for norm in norms] == [
        (6, False, torch.float64),
        (4, False, torch.float64),
    ]
    with pytest.raises(ValueError, match=r"the network has none; the recipe 'cov-pool' before it.*cov-pool\+gbw-norm"):
        parse_chain("gbw-norm").build(build_model("cnn", data), data)
    with pytest.raises(ValueError, match="option 'n' of recipe 'cov-pool' must be at least 1"):
        parse_chain("cov-pool[n=0]").build(build_model("cnn", data), data)
    with pytest.raises(ValueError, match="power must not be 0"):
        parse_chain("cov-pool+gbw-norm[power=0.0]").build(build_model("cnn", data), data)


def test_recipes_run_through_compare(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chains = ["cov-pool+gbw-norm", "cov-pool[n=8]+gbw-norm+lottery-ticket"]
    result = compare("digits", "cnn", chains, seeds=(0,), budget="15steps", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    assert result.arms[1].metrics["accuracy"].mean > 0.2
