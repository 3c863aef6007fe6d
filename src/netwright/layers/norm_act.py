"""Find which activation follows which normalisation in any network, and replace the two by one layer.

A layer that normalises *and* activates must take the place of both: with the activation left behind, the network would
activate twice. Which activation belongs to which normalisation is a matter of the forward pass, not of the order of
attributes, so it is read from a trace (torch.fx).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from netwright import checks
from netwright.surgery import swap, swapped

MakeNormAct = Callable[[nn.Module, bool], nn.Module]

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
# sigmoid and softmax are not here: after a normalisation they are the gate of an attention, not its activation
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Tanh,
    nn.Threshold,
)
_FUNCTIONS = {
    getattr(functional, name)
    for name in (
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu", "elu_", "celu"),
        *("celu_", "selu", "selu_", "gelu", "silu", "mish", "softplus", "hardswish", "hardtanh", "hardtanh_", "tanh"),
        *("threshold", "threshold_"),
    )
} | {torch.relu, torch.relu_, torch.tanh, torch.tanh_}
_METHODS = {"relu", "relu_", "tanh", "tanh_"}
_SIGMOIDS = {torch.sigmoid, functional.sigmoid, "sigmoid"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
# what may stand between a normalisation and its activation without a say in which activation it is
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.MaxPool2d)
_DROPOUTS: Mapping[Callable[..., Any], type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout2d: nn.Dropout2d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def channels_of(norm: nn.Module) -> int:
    """Channels of a batch, group or instance normalisation."""
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    assert isinstance(channels, int)
    return channels


def swap_norm_act(model: nn.Module, make: MakeNormAct, *, activations: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    """A copy of ``model`` in which ``make(norm, act)`` replaces every 2-D normalisation and the activation after it.

    ``act`` says whether an activation followed, and was taken away: a module that is used after replaced normalisations
    only becomes :class:`torch.nn.Identity`. A module with a say elsewhere too (the one ``self.relu`` of a torchvision
    block, which also follows the sum), and a functional activation, are taken out of the forward pass that calls them:
    the module with that forward pass becomes a :class:`torch.fx.GraphModule` with the same submodules, parameters and
    names, but without further methods. Identity, dropout and max pooling may stand between the two; ``x * sigmoid(x)``
    counts as an activation. An activation that follows something else, such as the sum of a residual block, stays.

    A model that cannot be traced because of single modules without a normalisation is traced around them. If that fails
    too, only a normalisation with a next neighbour in the same :class:`torch.nn.Sequential` can be judged; should the
    model have any other, this is an error.

    Args:
        model: Any network; it is left as it is.
        make: Builds the new layer from the normalisation that it replaces.
        activations: Further module types that are activations.

    Raises:
        InputError: If there is no 2-D normalisation; if the forward pass cannot be traced and the order of layers does
            not follow from ``nn.Sequential`` either; if the output of a normalisation goes to an activation and
            elsewhere too; if a normalisation that is used at several places is followed by an activation at some only;
            or if a forward pass that has to be rewritten depends on the training mode.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        >>> new = swap_norm_act(net, lambda norm, act: nn.SiLU() if act else nn.Identity())
        >>> new[0], new[1], new[3]
        (SiLU(), Identity(), Identity())
    """
    if not any(isinstance(module, NORMS) for module in model.modules()):
        kinds = ", ".join(kind.__name__ for kind in NORMS)
        checks.fail(f"the model must have a 2-D normalisation ({kinds})", f"a {type(model).__name__} without one")
    acts = ACTIVATIONS + activations
    try:
        plan = _plan_by_trace(model, acts)
    except _NotTraceable as error:
        plan = _plan_by_neighbours(model, acts, str(error))
    names = {module: name for name, module in model.named_modules()}
    followed = {names[norm]: act for norm, act in plan.norms.items()}
    gone = {names[act] for act in plan.whole_activations}
    return _rewrite(_swap_by_name(model, make, followed, gone), {names[m]: c for m, c in plan.calls.items()}, acts)


@dataclass
class _Plan:
    """What is to be done.

    Attributes:
        norms: Normalisation to whether an activation follows it.
        whole_activations: Activation modules that are used after these only.
        calls: Module to the numbers of the activations, counted in its own forward pass, that are to be skipped.
    """

    norms: dict[nn.Module, bool] = field(default_factory=dict)
    whole_activations: set[nn.Module] = field(default_factory=set)
    calls: dict[nn.Module, set[int]] = field(default_factory=dict)


class _NotTraceable(Exception):
    pass


class _Tracer(fx.Tracer):
    """Remembers for every node which module's forward pass made it, and in which call."""

    def __init__(self, leaves: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.leaves = leaves
        self.stack: list[tuple[nn.Module, int]] = []
        self.entered = 0

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaves(m) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.stack = [(root, 0)]
        return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        self.entered += 1
        self.stack.append((m, self.entered))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self.stack[-1]
        return node


def _plan_by_trace(model: nn.Module, acts: tuple[type[nn.Module], ...]) -> _Plan:
    graph, opaque = _trace(model, acts)
    modules = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    plan = _Plan()
    folded: set[fx.Node] = set()
    for node, norm in modules.items():
        if not isinstance(norm, NORMS):
            continue
        activation = _activation_after(node, modules, acts, opaque)
        if plan.norms.setdefault(norm, activation is not None) != (activation is not None):
            raise checks.InputError(
                f"normalisation {node.target!r} is used at several places, an activation follows at some only"
            )
        if activation is not None:
            folded.add(activation)
    for act in {modules[node] for node in folded if node in modules}:
        if all(node in folded for node, module in modules.items() if module is act):
            plan.whole_activations.add(act)
    for (owner, _), nodes in _activations_by_call(graph, modules, acts, plan.whole_activations).items():
        numbers = {number for number, node in enumerate(nodes) if node in folded}
        if plan.calls.setdefault(owner, numbers) != numbers:
            what = f"a {type(owner).__name__} that is used at several places"
            raise checks.InputError(f"{what} would lose an activation at some of them only")
    plan.calls = {owner: numbers for owner, numbers in plan.calls.items() if numbers}
    return plan


def _trace(model: nn.Module, acts: tuple[type[nn.Module], ...]) -> tuple[fx.Graph, set[nn.Module]]:
    """The graph of the whole model down to torch's own layers, and the modules that could not be looked into."""
    stops = NORMS + acts
    opaque: set[nn.Module] = set()

    def is_leaf(module: nn.Module) -> bool:
        return isinstance(module, stops) or module in opaque or _is_part(module)

    try:
        return _Tracer(is_leaf).trace(model), opaque
    except Exception:  # noqa: S110 - whatever a user's forward pass raises on a symbolic input
        pass
    for module in reversed(list(model.modules())):  # children first
        if module is model or _is_part(module) or any(isinstance(part, stops) for part in module.modules()):
            continue
        try:
            _Tracer(is_leaf).trace(module)
        except Exception:
            opaque.add(module)
    try:
        return _Tracer(is_leaf).trace(model), opaque
    except Exception as error:
        raise _NotTraceable(f"{type(error).__name__}: {error}") from error


def _is_part(module: nn.Module) -> bool:
    """Whether it is a layer of this library: what is inside of it belongs to its method and stays as it is."""
    return type(module).__module__.startswith("netwright.layers.") and type(module).__module__ != __name__


def _activation_after(
    norm: fx.Node, modules: Mapping[fx.Node, nn.Module], acts: tuple[type[nn.Module], ...], opaque: set[nn.Module]
) -> fx.Node | None:
    """The activation that alone consumes the output of ``norm``."""
    node = norm
    while len(node.users) == 1:
        (user,) = node.users
        if _activation_input(user, modules, acts) is node:
            return user
        module = modules.get(user)
        if module in opaque and not any(True for _ in module.parameters()):
            what = (
                f"cannot see whether {type(module).__name__} {user.target!r}, which follows {norm.target!r}, activates"
            )
            raise checks.InputError(f"{what}; if so, give its type in activations=")
        if not isinstance(module, _TRANSPARENT) and user.target not in _DROPOUTS:
            return None
        node = user
    for user in node.users:
        if _swish_input(user, modules) is node and len(node.users) == 2:
            return user
        if _activation_input(user, modules, acts) is node:
            what = f"the output of normalisation {norm.target!r} goes to activation {user.name!r} and elsewhere too"
            raise checks.InputError(f"{what}; one layer cannot stand for both")
    return None


def _activation_input(
    node: fx.Node, modules: Mapping[fx.Node, nn.Module], acts: tuple[type[nn.Module], ...]
) -> fx.Node | None:
    """What ``node`` activates, if it is an activation."""
    activates = (
        (node.op == "call_module" and isinstance(modules[node], acts))
        or (node.op == "call_function" and node.target in _FUNCTIONS)
        or (node.op == "call_method" and node.target in _METHODS)
    )
    return next(iter(node.all_input_nodes), None) if activates else _swish_input(node, modules)


def _swish_input(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> fx.Node | None:
    """The node x, if ``node`` is ``x * sigmoid(x)``."""
    if node.op not in {"call_function", "call_method"} or node.target not in _PRODUCTS or len(node.args) != 2:
        return None
    for x, gate in (node.args, node.args[::-1]):
        if (
            isinstance(gate, fx.Node)
            and (gate.target in _SIGMOIDS or isinstance(modules.get(gate), nn.Sigmoid))
            and gate.all_input_nodes == [x]
            and list(gate.users) == [node]
        ):
            return x  # type: ignore[return-value]
    return None


def _activations_by_call(
    graph: fx.Graph, modules: Mapping[fx.Node, nn.Module], acts: tuple[type[nn.Module], ...], skip: set[nn.Module]
) -> dict[tuple[nn.Module, int], list[fx.Node]]:
    """The activations in the order of each forward pass, but for those of the modules ``skip``."""
    calls: dict[tuple[nn.Module, int], list[fx.Node]] = {}
    for node in graph.nodes:
        if modules.get(node) not in skip and _activation_input(node, modules, acts) is not None:
            calls.setdefault(node.meta["owner"], []).append(node)
    return calls


def _plan_by_neighbours(model: nn.Module, acts: tuple[type[nn.Module], ...], why: str) -> _Plan:
    """For models that cannot be traced: what stands next in the same ``nn.Sequential`` comes next."""
    plan = _Plan()
    kept: set[nn.Module] = set()
    inside = {inner for module in model.modules() if _is_part(module) for inner in module.modules()}
    for parent in model.modules():
        if parent in inside:
            continue
        if not isinstance(parent, nn.Sequential):
            kept.update(parent.children())
            continue
        children = list(parent)
        for index, norm in enumerate(children):
            if not isinstance(norm, NORMS):
                continue
            after = next((child for child in children[index + 1 :] if not isinstance(child, _TRANSPARENT)), None)
            if after is not None:
                plan.norms[norm] = isinstance(after, acts)
                if isinstance(after, acts):
                    plan.whole_activations.add(after)
    for name, module in model.named_modules():
        if module not in inside and isinstance(module, NORMS) and (module not in plan.norms or module in kept):
            what = f"cannot tell which activation follows normalisation {name!r}, as the model cannot be traced"
            raise checks.InputError(f"{what} ({why}) and nothing follows it in an nn.Sequential")
        if module in plan.whole_activations and module in kept:
            raise checks.InputError(f"activation {name!r} has several uses, and the model cannot be traced ({why})")
    return plan


def _swap_by_name(model: nn.Module, make: MakeNormAct, followed: Mapping[str, bool], gone: set[str]) -> nn.Module:
    name_of: dict[nn.Module, str] = {}

    def where(name: str, module: nn.Module) -> bool:
        name_of[module] = name
        return name in followed or name in gone

    def build(module: nn.Module) -> nn.Module:
        name = name_of[module]
        return make(module, followed[name]) if name in followed else nn.Identity()

    return swap(model, {nn.Module: build}, where=where)


def _rewrite(model: nn.Module, calls: Mapping[str, set[int]], acts: tuple[type[nn.Module], ...]) -> nn.Module:
    """Take single calls of activations out of the forward passes of the named modules."""
    replaced = swapped(model)
    for name in sorted(calls, key=lambda name: name.count("."), reverse=True):  # inner modules first
        old = model.get_submodule(name)
        new = _without_activations(old, calls[name], acts)
        if old is model:
            model = new
        for parent in list(model.modules()):
            for key, child in parent._modules.items():
                if child is old:
                    parent._modules[key] = new
    model.__dict__["_swapped"] = replaced
    return model


def _without_activations(owner: nn.Module, numbers: set[int], acts: tuple[type[nn.Module], ...]) -> fx.GraphModule:
    """``owner`` with a forward pass that skips the activations of these numbers."""
    training = owner.training
    versions = []
    for mode in (False, True):
        owner.training = mode
        graph = _Tracer(lambda module: True).trace(owner)  # noqa: ARG005
        version = fx.GraphModule(owner, graph, type(owner).__name__)
        modules = {node: owner.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
        (activations,) = _activations_by_call(graph, modules, acts, set()).values()
        for number in numbers:
            before = _activation_input(activations[number], modules, acts)
            assert before is not None
            activations[number].replace_all_uses_with(before)
        _make_dropouts_modules(version, training)
        graph.eliminate_dead_code()
        version.delete_all_unused_submodules()
        version.recompile()
        versions.append(version)
    owner.training = training
    if versions[0].code != versions[1].code:
        what = f"the forward pass of {type(owner).__name__} depends on the training mode"
        raise checks.InputError(f"{what}; one of its activations cannot be taken out")
    new = versions[0]
    new.training = training
    return new


def _make_dropouts_modules(version: fx.GraphModule, training: bool) -> None:
    """A functional dropout has the mode of tracing written into it; a module follows the mode of the model."""
    for node in list(version.graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUTS:
            continue
        rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        name = f"_{node.name}"
        version.add_submodule(name, _DROPOUTS[node.target](rate).train(training))
        with version.graph.inserting_before(node):
            module = version.graph.call_module(name, (node.all_input_nodes[0],))
        node.replace_all_uses_with(module)
        version.graph.erase_node(node)


__all__ = ["ACTIVATIONS", "NORMS", "channels_of", "swap_norm_act"]
