"""Tests of ``netwright.explain.cam`` and ``netwright.explain.guided``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from netwright.checks import InputError
from netwright.explain.cam import (
    default_layer,
    grad_cam,
    grad_cams,
    guided_grad_cam,
    neuron_importance,
    normalise,
    unit_reasons,
)
from netwright.explain.guided import guided_backprop, input_gradient
from netwright.layers.attention import Attention
from netwright.models.vision.classic import MLP, lenet_5, vgg_bn
from netwright.models.vision.resnet import resnet_cifar
from netwright.models.vision.vit import VisionTransformer


def small_cnn(*, inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.ReLU(inplace=inplace),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    )


def pictures(samples: int = 4) -> Tensor:
    return torch.randn(samples, 2, 9, 9)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that the block leaves everything about a model, and torch's random state, as it was."""

    def look() -> dict[str, Any]:
        return {
            "modes": [module.training for module in model.modules()],
            "hooks": [
                len(hooks)
                for module in model.modules()
                for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            ],
            "wanted": [parameter.requires_grad for parameter in model.parameters()],
            "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            "state": {name: value.tolist() for name, value in model.state_dict().items()},
            "random": torch.get_rng_state().tolist(),
            "mode": torch.is_grad_enabled(),
        }

    before = look()
    yield
    assert look() == before


def by_full_backward(model: nn.Sequential, x: Tensor, layer: int, classes: list[int]) -> tuple[Tensor, Tensor]:
    """Activation and mean gradient, the long way: run by hand, whole backward pass."""
    model.eval()
    activation = model[: layer + 1](x)
    activation.retain_grad()
    logits = model[layer + 1 :](activation)
    logits[range(len(x)), classes].sum().backward()
    assert activation.grad is not None
    return activation.detach(), activation.grad.mean((2, 3))


def test_with_global_pooling_and_a_linear_head_it_is_the_class_activation_map() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double()
    x = torch.randn(6, 3, 12, 10, dtype=torch.float64)
    classes = torch.arange(6) % 4
    found = grad_cam(model, x, "0", classes)
    weight = model[3].weight[classes].detach()
    torch.testing.assert_close(found.alpha, weight / 80)
    expected = torch.einsum("bchw,bc->bhw", body(x), weight).relu() / 80
    torch.testing.assert_close(found.raw, expected.detach())
    assert found.map.shape == (6, 12, 10)
    larger = functional.interpolate(found.raw[:, None], size=(12, 10), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found.map, larger)


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
def test_it_is_the_definition_with_a_class_a_sample(layer: int) -> None:
    model, x, classes = small_cnn().double(), pictures().double(), [2, 0, 1, 1]
    with torch.no_grad():
        model[1].running_mean.normal_()
    found = grad_cam(model, x, str(layer), classes, size=(5, 20))
    activation, alpha = by_full_backward(model, x, layer, classes)
    torch.testing.assert_close(found.alpha, alpha)
    torch.testing.assert_close(found.raw, (activation * alpha[:, :, None, None]).sum(1).relu())
    torch.testing.assert_close(found.scores, model(x)[range(4), classes].detach())
    assert found.map.shape == (4, 5, 20)
    assert torch.equal(neuron_importance(model, x, str(layer), classes), found.alpha)


def test_samples_do_not_depend_on_each_other() -> None:
    model, x = small_cnn(), pictures()
    together = grad_cam(model, x, "4").map
    for sample in range(4):
        torch.testing.assert_close(grad_cam(model, x[sample : sample + 1], "4").map[0], together[sample])


def test_the_largest_logit_is_the_target_that_is_not_given() -> None:
    model, x = small_cnn(), pictures(6)
    classes = model.eval()(x).argmax(1)
    assert torch.equal(grad_cam(model, x, "4").map, grad_cam(model, x, "4", classes).map)
    everywhere = torch.full((6,), 2)
    assert torch.equal(grad_cam(model, x, "4", 2).map, grad_cam(model, x, "4", everywhere).map)


def test_counterfactual_and_signed_maps() -> None:
    model, x = small_cnn(), pictures()
    signed = grad_cam(model, x, "3", 1, relu=False)
    against = grad_cam(model, x, "3", 1, relu=False, counterfactual=True)
    torch.testing.assert_close(against.alpha, -signed.alpha)
    torch.testing.assert_close(against.raw, -signed.raw)
    torch.testing.assert_close(grad_cam(model, x, "3", 1).raw, signed.raw.relu())
    torch.testing.assert_close(grad_cam(model, x, "3", 1, counterfactual=True).raw, (-signed.raw).relu())
    assert (signed.raw < 0).any()


def test_a_scaled_score_scales_the_map() -> None:
    model, x = small_cnn(), pictures()
    one = grad_cam(model, x, "4", lambda logits: logits[:, 1])
    torch.testing.assert_close(one.map, grad_cam(model, x, "4", 1).map)
    three = grad_cam(model, x, "4", lambda logits: 3 * logits[:, 1].sum())
    torch.testing.assert_close(three.map, 3 * one.map)
    torch.testing.assert_close(normalise(three.map), normalise(one.map))


class Captioner(nn.Module):
    """Words from a picture and a question, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(2, 4, 3)
        self.ask = nn.Embedding(9, 4)
        self.speak = nn.Linear(4, 9)

    def forward(self, picture: Tensor, question: Tensor, words: int = 3) -> dict[str, Tensor]:
        state = self.see(picture).relu().mean((2, 3)) * self.ask(question).sum(1)
        logits = []
        for _ in range(words):
            state = state.tanh()
            logits.append(self.speak(state))
        return {"logits": torch.stack(logits, 1)}


def test_captions_and_answers_are_explained_too() -> None:
    model, x, question = Captioner(), pictures(3), torch.tensor([[1, 2], [3, 4], [5, 6]])
    caption = torch.tensor([[0, 1], [2, 3], [4, 5]])

    def log_probability(output: dict[str, Tensor]) -> Tensor:
        return output["logits"].log_softmax(2).gather(2, caption[:, :, None]).sum((1, 2))

    with unchanged(model):
        found = grad_cam(model, (x, question, 2), "see", log_probability)
    assert found.map.shape == (3, 9, 9)
    torch.testing.assert_close(found.scores, log_probability(model(x, question, 2)).detach())
    activation = model.see(x)
    state = activation.relu().mean((2, 3)) * model.ask(question).sum(1)
    first = state.tanh()
    logits = torch.stack([model.speak(first), model.speak(first.tanh())], 1)
    (gradient,) = torch.autograd.grad(log_probability({"logits": logits}).sum(), activation)
    torch.testing.assert_close(found.alpha, gradient.mean((2, 3)))
    assert input_gradient(model, (x, question), lambda output: output["logits"][:, 0, 0]).shape == x.shape


class Branches(nn.Module):
    """Two parallel branches, a layer that is used twice, and a skip around all."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 3, 3, padding=1)
        self.right = nn.Conv2d(2, 3, 5, padding=2)
        self.act = nn.ReLU(inplace=True)
        self.join = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = self.act(self.left(x)) + self.right(x)
        features = self.act(self.join(both)) + both
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


@pytest.mark.parametrize("frozen", [False, True])
def test_several_layers_in_one_pass(frozen: bool) -> None:
    model, x = Branches(), pictures()
    model.requires_grad_(not frozen)
    names = ["left", "right", "act", "join"]
    with unchanged(model):
        together = grad_cams(model, x, names, 1, relu=False)
        alone = {name: grad_cam(model, x, name, 1, relu=False) for name in names}
        reverse = grad_cams(model, x, tuple(names[::-1]), 1, relu=False)
    assert list(together) == names
    for name in names:
        torch.testing.assert_close(together[name].raw, alone[name].raw)
        torch.testing.assert_close(reverse[name].alpha, alone[name].alpha)
    # the latest call of the shared activation is the one before the sum
    expected = model.act(model.join(model.act(model.left(x)) + model.right(x)))
    weight = model.head.weight[1] / 81
    torch.testing.assert_close(together["act"].raw, torch.einsum("bchw,c->bhw", expected, weight).detach())
    # through the layer after it and around that
    mixed = (model.join(model.act(model.left(x)) + model.right(x)) > 0).double().mean((2, 3))
    by_hand = weight + mixed.float() @ (model.join.weight[:, :, 0, 0] * weight[:, None])
    torch.testing.assert_close(together["right"].alpha, by_hand.detach())


def test_layers_before_an_activation_that_works_in_place() -> None:
    plain, inplace = small_cnn(), small_cnn(inplace=True)
    inplace.load_state_dict(plain.state_dict())
    x = pictures()
    for layer in ("0", "1", "2", "3", "4"):
        torch.testing.assert_close(grad_cam(inplace, x, layer, 0).map, grad_cam(plain, x, layer, 0).map)
    torch.testing.assert_close(guided_backprop(inplace, x, 0), guided_backprop(plain, x, 0))


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        raise AssertionError("the backward pass went on below the layer")


class Marked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = NoWayBack.apply(x)
        return marked


def test_the_backward_pass_ends_at_the_layer_and_nothing_before_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), Marked(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 2))
    early: list[StorageWeakRef] = []
    gone: list[bool] = []
    model[0].register_forward_hook(lambda *seen: early.append(StorageWeakRef(seen[2].untyped_storage())))
    model[2].register_forward_hook(lambda *_: gone.append(early[-1].expired()))
    assert grad_cam(model, pictures(), "3", 0).map.shape == (4, 9, 9)
    assert gone == [True]
    with pytest.raises(AssertionError, match="went on below"):
        input_gradient(model, pictures(), 0)


def test_volumes_and_signals() -> None:
    volume = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    x = torch.randn(2, 1, 6, 7, 8)
    found = grad_cam(volume, x, "1", 3)
    assert found.map.shape == (2, 6, 7, 8)
    torch.testing.assert_close(found.raw, volume[:2](x)[:, 3].detach() / 120)
    assert grad_cam(volume, x, "1", 3, size=(3, 3, 3)).map.shape == (2, 3, 3, 3)
    signal = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    waves = torch.randn(2, 2, 11)
    by_layer = grad_cam(signal, waves, "0", 1)
    assert by_layer.map.shape == (2, 11)
    same = grad_cam(signal, waves, "1", 1, reshape=lambda output: output)
    torch.testing.assert_close(same.raw, signal[:2](waves)[:, 1].detach() / 9)


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size=12, patch_size=4, in_channels=1, num_classes=5, dim=8, depth=2, num_heads=2)


def test_tokens_go_where_their_patches_are() -> None:
    model, x = vit(), torch.randn(3, 1, 12, 12)
    layer = "blocks.1.attention.0"
    assert default_layer(model, x) == layer
    with unchanged(model):
        found = grad_cam(model, x, target=2, relu=False)
    assert found.layer == layer
    assert found.alpha.shape == (3, 8)
    assert found.raw.shape == (3, 3, 3)
    assert found.map.shape == (3, 12, 12)
    assert found.raw.abs().sum() > 0
    own = grad_cam(model, x, layer, 2, relu=False, reshape=lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (3, 3)))
    assert torch.equal(own.raw, found.raw)
    # the patches of the final norm do not reach the class token any more
    assert grad_cam(model, x, "norm", 2).raw.abs().sum() == 0


def test_tokens_of_pictures_that_are_not_square_and_of_text() -> None:
    patches = nn.Sequential(nn.Conv2d(1, 6, 4, stride=4), nn.Flatten(2))

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm, self.head = patches, nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.patches(x).transpose(1, 2)).mean(1))
            return logits

    model = Wide()
    assert default_layer(model, torch.randn(2, 1, 8, 24)) == "norm"
    assert grad_cam(model, torch.randn(2, 1, 8, 24), "norm").raw.shape == (2, 2, 6)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(10, 6), Attention(6, 2), nn.Linear(6, 2)

        def forward(self, words: Tensor) -> Tensor:
            logits: Tensor = self.head(self.mix(self.embed(words)).mean(1))
            return logits

    reader, words = Reader(), torch.randint(10, (3, 7))
    assert grad_cam(reader, words, "embed", 1).map.shape == (3, 7)
    assert default_layer(reader.requires_grad_(False), words).startswith("mix")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_is_left_as_it_was(training: bool, frozen: bool) -> None:
    model = small_cnn().train(training)
    model[1].train(not training)
    model.requires_grad_(not frozen)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x = pictures()
    handle = model[2].register_forward_hook(lambda *_: None)
    uses: list[Callable[[], object]] = [
        lambda: grad_cam(model, x),
        lambda: grad_cams(model, x, ["1", "4"], 1),
        lambda: guided_backprop(model, x),
        lambda: guided_grad_cam(model, x, "4"),
        lambda: input_gradient(model, x, 1),
        lambda: default_layer(model, x),
    ]
    for use in uses:
        with unchanged(model):
            use()
    assert not x.requires_grad
    assert x.grad is None
    handle.remove()
    with torch.no_grad(), unchanged(model):
        grad_cam(model, x)
        guided_backprop(model, x)


def test_hooks_and_modes_are_put_back_after_an_error() -> None:
    model, x = small_cnn(), pictures()
    larger = torch.randn(2, 2, 12, 12)

    def broken(logits: Tensor) -> Tensor:
        raise KeyError("the caller's own")

    for explain in (grad_cam, guided_backprop):
        with unchanged(model), pytest.raises(KeyError, match="own"):
            explain(model, x, target=broken)
    with unchanged(model), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        grad_cam(model, larger, "0")
    values = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(values.relu().sum() - values.relu().square().sum(), values)
    torch.testing.assert_close(gradient, (values > 0) * (1 - 2 * values.detach()))  # ReLU is itself again


def test_half_precision_and_autocast() -> None:
    model, x = small_cnn(), pictures()
    exact = grad_cam(model, x, "4", 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = grad_cam(model, x, "4", 1)
    assert rough.map.dtype == torch.float32
    assert (rough.map - exact.map).abs().max() < 0.05 * exact.map.max()
    small = grad_cam(model.bfloat16(), x.bfloat16(), "4", 1)
    assert small.map.dtype == torch.float32
    assert (small.map - exact.map).abs().max() < 0.05 * exact.map.max()


def test_inference_mode_is_refused_with_the_cure() -> None:
    model, x = small_cnn(), pictures()
    uses: list[Callable[[nn.Module, Tensor], object]] = [grad_cam, guided_backprop, default_layer]
    for use in uses:
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\) instead"):
            use(model, x)
    with torch.inference_mode():
        made_there, given_there = small_cnn(), x.clone()
    with pytest.raises(RuntimeError, match=r"through '0.weight', which was made inside .* load the model outside"):
        grad_cam(made_there, x, "4")
    torch.testing.assert_close(grad_cam(model, given_there, "4", 1).map, grad_cam(model, x, "4", 1).map)
    torch.testing.assert_close(guided_backprop(model, given_there, 1), guided_backprop(model, x, 1))

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = model[:5], nn.Linear(80, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                features = self.body(x)
            return self.head(features.clone().flatten(1))

    with pytest.raises(RuntimeError, match=r"let the model use torch\.no_grad\(\) instead"):
        grad_cam(Frozen(), x, "body")


def test_a_frozen_part_under_no_grad_can_be_explained_at_its_end() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small_cnn()[:5], nn.Linear(80, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.body(x)
            logits: Tensor = self.head(features.flatten(1))
            return logits

    model, x = Frozen().eval(), pictures()
    weight = model.head.weight[1].view(5, 16).mean(1)
    torch.testing.assert_close(grad_cam(model, x, "body", 1).alpha, weight.detach().expand(4, 5))


def guided_by_hand(x: Tensor, first: Tensor, second: Tensor, target: int) -> Tensor:
    """Guided backprop of relu(relu(x A) B) summed, written out."""
    hidden = x @ first
    out = hidden.relu() @ second
    gradient = torch.zeros_like(out)
    gradient[:, target] = 1
    gradient = gradient.clamp(min=0) * (out > 0)
    gradient = (gradient @ second.T).clamp(min=0) * (hidden > 0)
    return gradient @ first.T


@pytest.mark.parametrize("kind", ["module", "in place", "function", "functional in place", "method", "method in place"])
def test_guided_backprop_is_the_definition_whoever_calls_the_relu(kind: str) -> None:
    relu: dict[str, Callable[[Tensor], Tensor]] = {
        "module": nn.ReLU(),
        "in place": nn.ReLU(inplace=True),
        "function": torch.relu,
        "functional in place": lambda t: functional.relu(t, inplace=True),
        "method": lambda t: t.relu(),
        "method in place": lambda t: t.relu_(),
    }
    first, second = torch.randn(6, 20, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return relu[kind](relu[kind](x @ first) @ second)

    x = torch.randn(8, 6, dtype=torch.float64)
    expected = guided_by_hand(x, first, second, 1)
    torch.testing.assert_close(guided_backprop(Net(), x, 1), expected)
    assert not torch.allclose(input_gradient(Net(), x, 1), expected)


def test_relu6_is_guided_between_its_ends() -> None:
    model = nn.Sequential(nn.ReLU6(), nn.Linear(4, 1, bias=False))
    model[1].weight.data.copy_(torch.tensor([[1.0, 1.0, 1.0, -1.0]]))
    x = torch.tensor([[-1.0, 3.0, 7.0, 3.0]])
    assert guided_backprop(model, x, 0).tolist() == [[0, 1, 0, 0]]
    assert input_gradient(model, x, 0).tolist() == [[0, 1, 0, -1]]


def test_input_gradient_is_that_of_autograd() -> None:
    model, x = small_cnn().eval(), pictures().requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
    torch.testing.assert_close(input_gradient(model, x, 2), expected)


def test_guided_grad_cam_is_the_product() -> None:
    model, x = small_cnn(), pictures()
    product = guided_backprop(model, x, 1) * grad_cam(model, x, "4", 1).map[:, None]
    torch.testing.assert_close(guided_grad_cam(model, x, "4", 1), product)
    assert guided_grad_cam(model, x, "4", 1).shape == x.shape


def test_units_in_words() -> None:
    alpha = torch.tensor([[0.5, -2.0, 0.0, 3.0], [-1.0, -3.0, -2.0, -4.0]])
    names = ["ears", "wheels", "sky", "eyes"]
    first, second = unit_reasons(alpha, names, top=2)
    assert first.positive == (("eyes", 3.0), ("ears", 0.5))
    assert first.negative == (("wheels", -2.0),)
    assert second.positive == ()
    assert second.negative == (("eyes", -4.0), ("wheels", -3.0))
    assert unit_reasons(alpha, {3: "eyes"}, top=9)[0].positive == (("eyes", 3.0), ("unit 0", 0.5))
    assert unit_reasons(alpha)[0].negative == (("unit 1", -2.0),)


def test_the_layer_that_is_taken_by_default() -> None:
    assert default_layer(lenet_5(), torch.randn(2, 1, 28, 28)) == "4"
    assert default_layer(resnet_cifar(8, 4), torch.randn(2, 3, 16, 16)).startswith("stages.2.0")
    last = default_layer(vgg_bn(11, widths=(4, 4, 4, 4, 4)), torch.randn(2, 3, 32, 32))
    assert isinstance(vgg_bn(11)[int(last)], nn.ReLU)
    assert default_layer(small_cnn(inplace=True), pictures()) == "4"
    assert default_layer(small_cnn().requires_grad_(False), pictures()) == "4"
    assert default_layer(Branches(), pictures()) == "act"
    volume = nn.Sequential(nn.Conv3d(1, 2, 3), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(16, 2))
    assert default_layer(volume, torch.randn(2, 1, 6, 6, 6)) == "0"
    with pytest.raises(InputError, match=r"no layer puts out features over places.*got .*Linear"):
        default_layer(MLP(162, (8,), 3), pictures())


def test_normalised_maps() -> None:
    maps = normalise(torch.randn(5, 4, 6, dtype=torch.float64))
    assert maps.amin((1, 2)).tolist() == [0] * 5
    assert maps.amax((1, 2)).tolist() == [1] * 5
    assert normalise(torch.full((2, 3, 3), 7.0)).tolist() == torch.zeros(2, 3, 3).tolist()


def test_bad_layers() -> None:
    model, x = small_cnn(), pictures()
    with pytest.raises(InputError, match=r"unknown layer 'stages'; known are: 0, 1, 2"):
        grad_cam(model, x, "stages")
    with pytest.raises(InputError, match=r"unknown layer 'blocks.1.atention.0'; did you mean 'blocks.1.attention.0'"):
        grad_cam(vit(), torch.randn(1, 1, 12, 12), "blocks.1.atention.0")
    with pytest.raises(InputError, match=r"must put out \(batch, channels, \*places\).*got shape \(4, 7\)"):
        grad_cam(model, x, "7")
    with pytest.raises(InputError, match="number of layers must be at least 1"):
        grad_cams(model, x, [])

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.aside = small_cnn(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            logits: Tensor = self.used(x)
            return logits

    with pytest.raises(InputError, match="layer 'unused' was not called"):
        grad_cam(Skips(), x, "unused")
    with pytest.raises(InputError, match="no gradient flows from the target to layer 'aside'"):
        grad_cam(Skips(), x, "aside")
    with pytest.raises(InputError, match="no gradient flows from the target to layer 'aside'"):
        grad_cams(Skips(), x, ["used.0", "aside"])
    with pytest.raises(InputError, match="no gradient flows from the target to layer '3'"):
        grad_cam(small_cnn(), x, "3", lambda logits: logits.detach().sum())
    with pytest.raises(InputError, match="no gradient flows from the target to the input"):
        input_gradient(small_cnn(), x, lambda logits: logits.detach().sum())


def test_bad_targets() -> None:
    model, x = small_cnn(), pictures()
    with pytest.raises(InputError, match=r"target must be in \[0, 2\], as the model has 3 outputs, got 3"):
        grad_cam(model, x, "4", 3)
    with pytest.raises(InputError, match=r"target must be in \[0, 2\].*got -1"):
        grad_cam(model, x, "4", [0, 1, -1, 2])
    with pytest.raises(InputError, match=r"one for each of 4 samples, got shape \(3,\)"):
        guided_backprop(model, x, torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match=r"target must be the number of a class.*got torch.float32"):
        grad_cam(model, x, "4", torch.tensor(1.0))
    with pytest.raises(InputError, match=r"must give one score a sample \(batch,\) or their sum, got torch.float32 of"):
        grad_cam(model, x, "4", lambda logits: logits)
    with pytest.raises(InputError, match=r"must put out logits \(batch, classes\); else give a function, got dict"):
        grad_cam(Captioner(), (x, torch.ones(4, 1, dtype=torch.int64)), "see")
    with pytest.raises(InputError, match=r"must put out logits .*got shape \(4, 5, 4, 4\)"):
        grad_cam(small_cnn()[:5], x, "2", 1)


def test_other_bad_input() -> None:
    model, x = small_cnn(), pictures()
    with pytest.raises(InputError, match=r"size must have 2 entries, as the layer's places, got \(3,\)"):
        grad_cam(model, x, "4", size=(3,))
    with pytest.raises(InputError, match="smallest entry of size must be at least 1, got 0"):
        grad_cam(model, x, "4", size=(3, 0))
    with pytest.raises(InputError, match="must be finite, got NaN"):
        grad_cam(model, x / 0, "4")
    with pytest.raises(InputError, match=r"reshape must give \(batch, channels, \*places\), got shape \(4, 80\)"):
        grad_cam(model, x, "4", reshape=lambda output: output.flatten(1))
    with pytest.raises(InputError, match=r"a map for each of 4 samples.*got shape \(20, 1, 4, 4\)"):
        grad_cam(model, x, "4", reshape=lambda output: output.reshape(20, 1, 4, 4))
    tokens = nn.Sequential(nn.Flatten(), nn.Linear(54, 24), nn.Unflatten(1, (12, 2)), nn.LayerNorm(2), nn.Flatten())
    with pytest.raises(InputError, match="12 tokens, less 0, 1, 2, 5 at their start, must fill a picture of 9×6"):
        grad_cam(tokens, torch.randn(2, 1, 9, 6), "3")
    with pytest.raises(InputError, match="x must be a tensor, or a tuple that starts with one, got str"):
        grad_cam(model, ("cat.png",), "4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="changes the backward pass of ReLUs, got a network without any"):
        guided_backprop(nn.Sequential(nn.Flatten(), nn.Linear(162, 2), nn.GELU()), x)
    with pytest.raises(InputError, match=r"x must be of a floating-point type, got torch\.int64"):
        input_gradient(nn.Sequential(nn.Embedding(5, 2)), torch.ones(2, dtype=torch.int64))
    with pytest.raises(InputError, match="as many dimensions of places as the picture has"):
        guided_grad_cam(model, x, "4", reshape=lambda output: output.flatten(2))
    with pytest.raises(InputError, match=r"names must be as many as channels \(4\), got 2"):
        unit_reasons(torch.ones(1, 4), ["a", "b"])
    with pytest.raises(InputError, match="names must be of units from 0 to 3, got 4"):
        unit_reasons(torch.ones(1, 4), {4: "a"})
    with pytest.raises(InputError, match="top must be at least 1"):
        unit_reasons(torch.ones(1, 4), top=0)
