"""Tests of ``netwright.layers.norm_act``."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.layers.norm_act import swap_norm_act
from netwright.models.vision.resnet import resnet_cifar
from netwright.surgery import swapped


class Doubled(nn.Module):
    """Stands for a layer that normalises and activates, so that what is left behind can be counted."""

    def __init__(self, act: bool) -> None:
        super().__init__()
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        return 2 * input + 10 * self.act


def make(norm: nn.Module, act: bool) -> nn.Module:
    return Doubled(act)


class BasicBlock(nn.Module):
    """As in torchvision: one ``relu`` for a normalisation and for the sum, attributes in no telling order."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.bn2 = nn.BatchNorm2d(channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(), BasicBlock())
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer1(x)), 1))


def test_a_torchvision_resnet_keeps_only_the_relu_after_the_sums() -> None:
    model = TorchvisionResNet()
    new = swap_norm_act(model, make)
    assert new.bn1.act
    assert isinstance(new.relu, nn.Identity)
    x = torch.randn(2, 3, 8, 8)

    def block(old: BasicBlock, x: Tensor) -> Tensor:
        return torch.relu(2 * old.conv2(2 * old.conv1(x) + 10) + x)

    h = model.maxpool(2 * model.conv1(x) + 10)
    expected = model.fc(torch.flatten(model.avgpool(block(model.layer1[1], block(model.layer1[0], h))), 1))
    torch.testing.assert_close(new(x), expected)
    assert set(swapped(new)) >= {"bn1", "layer1.0.bn1", "layer1.0.bn2"}
    # names of parameters stay, the old model is as it was
    assert set(new.state_dict()) == {name for name in model.state_dict() if "bn" not in name}
    assert isinstance(model.layer1[0].bn1, nn.BatchNorm2d)


class Functional(nn.Module):
    def __init__(self, method: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu() if self.method else functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.dropout(x, 0.5, training=self.training)
        return self.bn2(self.conv2(x))


@pytest.mark.parametrize("method", [False, True])
def test_a_functional_relu_goes_and_a_norm_without_one_is_told_so(method: bool) -> None:
    model = Functional(method)
    new = swap_norm_act(model, make).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(new(x), 2 * model.conv2(2 * model.conv1(x) + 10))


def test_a_functional_dropout_follows_the_mode_also_after_rewriting() -> None:
    new = swap_norm_act(Functional().eval(), make)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(new(x), new(x))
    new.train()
    assert not torch.equal(new(x), new(x))


def test_one_relu_module_behind_several_norms_goes() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), relu)
    new = swap_norm_act(model, make)
    assert [type(layer) for layer in new] == [nn.Conv2d, Doubled, nn.Identity, nn.Conv2d, Doubled, nn.Identity]


def test_one_relu_module_behind_a_norm_and_a_convolution_goes_once() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), relu)
    new = swap_norm_act(model, make)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(new(x), torch.relu(model[3](2 * model[0](x) + 10)))


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(0.5), nn.MaxPool2d(2)])
def test_what_commutes_may_stand_between(between: nn.Module) -> None:
    new = swap_norm_act(nn.Sequential(nn.BatchNorm2d(3), between, nn.ReLU()), make)
    assert new[0].act
    assert isinstance(new[2], nn.Identity)


def test_a_gate_after_a_norm_is_not_its_activation() -> None:
    new = swap_norm_act(nn.Sequential(nn.GroupNorm(1, 4), nn.Sigmoid()), make)
    assert not new[0].act
    assert isinstance(new[1], nn.Sigmoid)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


def test_a_swish_of_the_users_own_goes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Swish())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(swap_norm_act(model, make)(x), 2 * model[0](x) + 10)


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs() if x.sum() > 0 else x


def test_single_untraceable_layers_are_traced_around() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 3, 1), Untraceable(), nn.Conv2d(3, 3, 1))
    block = BasicBlock(3)
    new = swap_norm_act(nn.Sequential(conv, block), make)
    x = torch.randn(2, 3, 4, 4)
    h = conv(x)
    torch.testing.assert_close(new(x), torch.relu(2 * block.conv2(2 * block.conv1(h) + 10) + h))


def test_an_opaque_layer_that_might_be_an_activation_has_to_be_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Untraceable())
    with pytest.raises(ValueError, match=r"cannot see whether Untraceable '1', which follows '0', activates"):
        swap_norm_act(model, make)
    new = swap_norm_act(model, make, activations=(Untraceable,))
    assert new[0].act
    assert isinstance(new[1], nn.Identity)


class Branching(nn.Module):
    """Cannot be traced as a whole: its own forward pass looks at values."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if x.sum() > 0 else -x)


def test_without_a_trace_neighbours_in_a_sequential_decide() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    new = swap_norm_act(Branching(body), make)
    assert new.body[1].act
    assert isinstance(new.body[2], nn.Identity)
    assert not new.body[3].act


def test_without_a_trace_nothing_is_guessed() -> None:
    with pytest.raises(ValueError, match=r"cannot tell which activation follows normalisation 'body.bn2'.*traced"):
        swap_norm_act(Branching(BasicBlock(3)), make)


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        return torch.relu(x) + x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.relu(self.bn(x)))


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(x))
        return 2 * x if self.training else x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Split(), r"goes to activation 'relu' and elsewhere too"),
        (Twice(), r"'bn' is used at several places, an activation follows at some only"),
        (Moody(), r"forward pass of Moody depends on the training mode"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
            r"must have a 2-D normalisation.*got a Sequential without one",
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swap_norm_act(model, make)


def test_the_residual_network_of_the_house() -> None:
    """Sequential(norm, relu) inside of a sequential branch; the activation of the block follows the sum and stays."""
    new = swap_norm_act(resnet_cifar(8, 4, shortcut="B"), make)
    acts = [module.act for module in new.modules() if isinstance(module, Doubled)]
    assert (len(acts), sum(acts)) == (9, 4)
    assert sum(isinstance(module, nn.ReLU) for module in new.modules()) == 3
    assert new(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_modes_and_gradient_flags_stay() -> None:
    model = TorchvisionResNet()
    model.layer1[0].eval()
    model.layer1[0].conv1.weight.requires_grad_(False)
    new = swap_norm_act(model, make)
    assert new.training
    assert not new.layer1[0].training
    assert not new.layer1[0].conv1.weight.requires_grad
