"""Tests of ``netwright.models.signals.spdnet``."""

import pytest
import torch

from netwright.cost import count_params
from netwright.layers.spd_layers import CovPool
from netwright.layers.spd_norm import AIRMBatchNorm, GBWBatchNorm
from netwright.models.signals.spdnet import EEGSPDNet, SPDNet


def test_published_size_of_the_eeg_network() -> None:
    with torch.device("meta"):
        model = EEGSPDNet()
        assert count_params(model) == 70_114
        assert count_params(model.spdnet.features) == 15 * 12 + 2 * 144 + 1
        assert count_params(model.spdnet.classifier) == 144 * 5 + 5
        assert count_params(EEGSPDNet(norm=None)) == 70_114 - 289
        assert model(torch.empty(30, 1, 8, 125, device="meta")).shape == (30, 5)


def test_networks_train_whatever_the_norm() -> None:
    covariances = CovPool()(torch.randn(16, 9, 40))
    targets = torch.randint(3, (16,))
    for norm in (None, GBWBatchNorm, AIRMBatchNorm):
        model = SPDNet((9, 6, 4), 3, norm, free=True)
        loss = torch.nn.functional.cross_entropy(model(covariances), targets)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model = SPDNet((9, 6), 3, in_channels=2)
    assert model(covariances.expand(-1, 2, -1, -1)).shape == (16, 3)


def test_eeg_network_separates_frequencies_by_covariance() -> None:
    time = torch.arange(125) / 125
    classes = torch.arange(5).repeat(8)
    signals = torch.sin(2 * torch.pi * (6 + 2 * classes).view(-1, 1, 1, 1) * time) + 0.3 * torch.randn(40, 1, 8, 125)
    model = EEGSPDNet(spatial=8, free=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(signals), classes)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="sizes must be those of the input and of at least one BiMap"):
        SPDNet((9,), 2)
    with pytest.raises(ValueError, match="n_out must be in"):
        SPDNet((9, 12), 2)
    with pytest.raises(ValueError, match="dimension 2 of input must have size 8"):
        EEGSPDNet()(torch.randn(2, 1, 6, 125))
    with pytest.raises(ValueError, match=r"input must have shape \(batch, 1, electrodes, time\)"):
        EEGSPDNet()(torch.randn(2, 8, 125))
