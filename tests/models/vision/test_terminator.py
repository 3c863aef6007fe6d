"""Tests of ``netwright.models.vision.terminator``."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional

from netwright.cost import count_params
from netwright.hypernets.hyperzzw import MagnetKernel, hyperzzw_global, instance_std, slow_neural_loss
from netwright.models.vision.terminator import SFNEBlock, Terminator, norm_penalty


def small(**options: object) -> Terminator:
    return Terminator(size=8, factors=(4, 1, 1), **options)


def test_published_counts() -> None:
    with torch.device("meta"):
        release = Terminator(faithful_release=True)
        registered = Terminator()
    assert count_params(release) == 1_336_855
    assert [count_params(block) for block in release.blocks] == [53_377, 57_824, 105_188, 253_580, 863_996]
    assert count_params(registered) - count_params(release) == 2_560
    assert [block.channels for block in registered.blocks] == [3, 12, 36, 72, 144]
    assert [block.earlier for block in registered.blocks] == [0, 0, 1, 1, 2]
    assert registered.classifier.in_features == 288
    output, kernel = registered.blocks[0](torch.empty(2, 3, 32, 32, device="meta"))
    assert (output.shape, kernel.shape) == ((2, 12, 32, 32), (1, 3, 32, 32))


def test_a_block_is_its_ten_branches() -> None:
    block = SFNEBlock(4, 3, 6, earlier=2).eval()
    x, one, two = torch.randn(3, 4, 6, 6), torch.randn(3, 2, 6, 6), torch.randn(3, 1, 6, 6)
    kernel = block.slow_net()
    f = instance_std(block.rgu_slow(x * kernel) + block.rgu_fast(x))
    m = instance_std(block.channel_mixer(x))
    e = instance_std(block.channel_interaction(x))
    o = hyperzzw_global(x, kernel, f)
    l3, l9, l5, l7 = block.local
    assert [net.slow_net.size[0] for net in block.local] == [3, 9, 5, 7]
    branches = [
        *(o, l9(e, x), torch.cat([one, one], 1), f, hyperzzw_global(x, kernel, m), l3(x, e), o * torch.sigmoid(o)),
        *(l5(m, x), hyperzzw_global(x, kernel, e), l7(x, m), torch.cat([two] * 4, 1), block.interaction(o, x)),
    ]
    encoded = block.standardise(block.bottleneck(torch.cat(branches, 1)))
    output, given = block(x, (one, two))
    torch.testing.assert_close(output, functional.gelu(encoded) + block.shift)
    assert torch.equal(given, kernel)


def test_the_blocks_in_a_row() -> None:
    model = Terminator(size=6, factors=(4, 1, 1, 1, 1)).eval()
    x = torch.randn(3, 3, 6, 6)
    outputs, kernels = [x], []
    for i, block in enumerate(model.blocks):
        # outputs[i] goes into block i, so its output but one stands at i - 1
        earlier = [outputs[i - 1]] if i in (2, 3) else [outputs[3], outputs[2]] if i == 4 else []
        output, kernel = block(outputs[-1], earlier)
        outputs.append(output)
        kernels.append(kernel)
    logits, loss = model(x, return_slow_loss=True)
    torch.testing.assert_close(logits, model.classifier(outputs[-1].mean((2, 3))))
    torch.testing.assert_close(loss, slow_neural_loss(kernels))
    assert torch.equal(model(x), logits)
    summed = Terminator(size=6, factors=(4, 1, 1, 1, 1), slow_loss="channel-sum").eval()
    summed.load_state_dict(model.state_dict())
    torch.testing.assert_close(summed(x, return_slow_loss=True)[1], slow_neural_loss(kernels, variant="channel-sum"))


@pytest.mark.parametrize("ndim", [1, 2])
def test_channel_means_are_zero_after_standardisation(ndim: int) -> None:
    model = small(ndim=ndim)
    means = []
    for block in model.blocks:
        block.standardise.register_forward_hook(
            lambda module, inputs, output: means.append(output.transpose(0, 1).flatten(1).mean(1).abs().max())
        )
    logits = model(torch.randn(4, 3, *(8,) * ndim))
    assert logits.shape == (4, 10)
    assert len(means) == 3
    assert max(means) < 1e-5


def test_gradients_reach_all_parameters_but_what_is_standardised_away() -> None:
    model = small().double()
    logits, loss = model(torch.randn(4, 3, 8, 8, dtype=torch.float64), return_slow_loss=True)
    (logits.square().mean() + loss).backward()
    without = {name.split(".", 2)[2] for name, p in model.named_parameters() if p.grad.abs().sum() < 1e-12}
    biases = ["channel_mixer", "bottleneck", "rgu_slow.output", "rgu_fast.output"]
    biases += [f"local.{i}.channel_mixer" for i in range(4)]
    assert without == {f"{name}.bias" for name in biases} | {f"local.{i}.shift" for i in range(4)}


def test_the_slow_loss_alone_trains_the_global_slow_networks_alone() -> None:
    model = small()
    model(torch.randn(2, 3, 8, 8), return_slow_loss=True)[1].backward()
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"slow_net"}


def test_predictions_depend_on_the_batch_unless_told_otherwise() -> None:
    x = torch.randn(6, 3, 8, 8)
    method = small().eval()
    assert not torch.allclose(method(x)[:3], method(x[:3]))
    deployable = small(context="sample", track_running_stats=True)
    deployable(x)
    deployable.eval()
    torch.testing.assert_close(deployable(x)[:1], deployable(x[:1]), atol=1e-5, rtol=1e-4)
    again = small(context="sample", track_running_stats=True).eval()
    again.load_state_dict(deployable.state_dict())
    torch.testing.assert_close(again(x), deployable(x))


@torch.no_grad()
def test_kept_kernels_change_nothing() -> None:
    model, x = small().eval(), torch.randn(2, 3, 8, 8)
    kept = model(x)
    nets = [module for module in model.modules() if isinstance(module, MagnetKernel)]
    assert len(nets) == 3 * 8
    assert all(net._cache._kept is not None for net in nets)
    assert torch.equal(model(x), kept)
    for net in nets:
        net.train()
    assert torch.equal(model(x), kept)


def test_autocast_compile_and_safetensors(tmp_path: Path) -> None:
    model, x = Terminator(size=8, factors=(4,)), torch.randn(4, 3, 8, 8)
    logits = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
        half.float().sum().backward()
    torch.testing.assert_close(half.float(), logits, atol=0.1, rtol=0.1)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), logits)
    save_model(model, str(tmp_path / "model.safetensors"))
    again = Terminator(size=8, factors=(4,))
    load_model(again, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(again(x), logits)


def test_norm_penalty() -> None:
    block = SFNEBlock(1, 12, 4)
    slow = [p for net in block.modules() if isinstance(net, MagnetKernel) for p in net.parameters()]
    fast = [p for p in block.parameters() if not any(p is other for other in slow)]
    expected = 0.5 * (sum(p.norm() for p in fast) + 1e-3 * sum(p.norm() for p in slow))
    torch.testing.assert_close(norm_penalty(block, 0.5, 1e-3), expected)
    norm_penalty(block).backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())  # also at 0, where the biases start


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small()(torch.randn(2, 3, 8, 6)), "input must have 8×8 pixels, got 8×6"),
        (lambda: small()(torch.randn(2, 3, 16, 16)), "input must have 8×8 pixels, got 16×16"),
        (lambda: small()(torch.randn(2, 1, 8, 8)), "dimension 1 of input must have size 3"),
        (lambda: small()(torch.randn(3, 8, 8)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: small(ndim=1)(torch.randn(2, 3, 8, 8)), r"input must have shape \(batch, channels, length\)"),
        (lambda: small()(torch.randn(1, 3, 8, 8)), "at least 2 samples in training, got a batch of 1"),
        (lambda: Terminator(in_channels=1), r"channels \* factor must be divisible by groups = 12, got 4"),
        (lambda: Terminator(factors=()), "number of factors must be at least 1"),
        (lambda: small(dropout=(0.0, 0.1)), r"dropout must be as many as factors, one a block \(3\), got 2"),
        (lambda: small(earlier=(0, 0, 1, 1)), r"earlier must be as many as factors, one a block \(3\), got 4"),
        (lambda: small(earlier=(0, 1, 1)), "block 1 can have 0 to 0 earlier outputs, got 1"),
        (lambda: small(slow_loss="sum"), "unknown variant of the slow neural loss 'sum'"),
        (lambda: small(context="image"), "unknown context 'image'"),
        (lambda: small(omega0=0.0), "omega0 must be positive"),
        (lambda: SFNEBlock(3, 4, 1), "size must be at least 2, got 1"),
        (lambda: SFNEBlock(3, 0, 8), "factor must be at least 1, got 0"),
        (lambda: SFNEBlock(3, 4, 8, dropout=1.0), r"dropout must be in \[0, 1\), got 1"),
        (lambda: SFNEBlock(3, 4, 8, kernel_sizes=(3, 5)), r"kernel_sizes must be four, got \(3, 5\)"),
        (lambda: SFNEBlock(3, 4, 8, kernel_sizes=(3, 5, 7, 8)), "kernel_size must be odd, got 8"),
        (lambda: SFNEBlock(3, 4, 8, earlier=-1), "earlier must be at least 0"),
        (lambda: SFNEBlock(3, 4, 8, earlier=1)(torch.randn(2, 3, 8, 8)), "the block needs 1 earlier outputs, got 0"),
        (
            lambda: SFNEBlock(3, 4, 8, earlier=1)(torch.randn(2, 3, 8, 8), [torch.randn(2, 2, 8, 8)]),
            "channels must be divisible by those of an earlier output = 2, got 3",
        ),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
