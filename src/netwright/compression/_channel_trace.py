"""Which axes of a network are the same channels, found by following them through one forward pass (torch.fx)."""

import inspect
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from netwright.checks import InputError
from netwright.compression._channel_groups import Book, Segment, Segments, own_tensor
from netwright.compression._channel_layers import BATCH_NORMS, HINT, axes_of, channel_dim, why_no_rule
from netwright.compression._channel_shapes import (
    Axis,
    NoRule,
    argument,
    indexed,
    moved,
    name_of,
    reduced,
    reshaped,
    size_is_written,
)
from netwright.surgery import eval_mode

# what is done to every entry by itself; of the first f(a x) = a f(x) holds for a > 0
_HOMOGENEOUS = re.compile(
    "relu|leaky_relu|rrelu|abs|neg|dropout[123]?d?|feature_dropout|contiguous|clone|detach|to|float|double|half|"
    "bfloat16|type_as"
)
_CURVED = re.compile(
    "relu6|elu|selu|celu|gelu|silu|mish|sigmoid|tanh|hardtanh|hardswish|hardsigmoid|softplus|softsign|logsigmoid|"
    "tanhshrink|softshrink|hardshrink|threshold|alpha_dropout|exp|log|sqrt|square|clamp|sin|cos|erf"
)
_HOMOGENEOUS_LAYERS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.RReLU,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
)
_CURVED_LAYERS = (
    *(nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
    *(nn.Threshold, nn.AlphaDropout),
)
# what works on the last (1, 2 or 3) dimensions of each channel
_SPATIAL_LAYERS = {
    getattr(nn, f"{name}{dims}d"): dims
    for name in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool", "ZeroPad", "ReflectionPad")
    for dims in (1, 2, 3)
} | {nn.ReplicationPad1d: 1, nn.ReplicationPad2d: 2, nn.ReplicationPad3d: 3, nn.CircularPad2d: 2}
_RESIZING_LAYERS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
_SPATIAL = {
    f"{name}{dims}d": dims
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    for dims in (1, 2, 3)
}
_UNLIKE = "needs channels that are laid out alike (a padded shortcut, for one, has zeros between them)"
_SUMS = {"add", "iadd", "sub", "isub", "maximum", "minimum"}
_PRODUCTS = {"mul", "imul", "multiply", "div", "truediv", "itruediv", "divide"}
_RESHAPES = {"flatten", "reshape", "view", "squeeze", "unsqueeze"}
_REDUCTIONS = {"mean", "sum", "amax", "amin"}


def trace(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Book, dict[str, str]]:
    """Follow the channels of ``model`` through a forward pass in eval mode.

    Returns:
        The book of groups, and by name of a BatchNorm the layer before it that nothing else reads.

    Raises:
        InputError: If torch.fx cannot trace the model, or it fails on these inputs.
    """
    with eval_mode(model), torch.no_grad():
        try:
            graph = _Tracer().trace(model, _defaults(model, len(inputs)))
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be traced by torch.fx ({_first_line(error)}); {HINT}"
            ) from error
        walk = _Walk(model, graph)
        try:
            walk.run(*inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            raise InputError(
                f"{type(model).__name__} fails on an input of shape {shapes}: {_first_line(error)}"
            ) from error
    return walk.book, walk.folds


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # a module with tensors but no modules of its own is a layer: its inside says nothing about channels
        own = any(tensor is not None for tensor in itertools.chain(m._parameters.values(), m._buffers.values()))
        return super().is_leaf_module(m, module_qualified_name) or (own and not any(True for _ in m.children()))

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        # one that the forward pass makes on the spot has no name: only what it does can be followed
        named = any(m is own for own in self.root.modules())
        return super().call_module(m, forward, args, kwargs) if named else forward(*args, **kwargs)


def _defaults(model: nn.Module, given: int) -> dict[str, Any]:
    """The arguments of ``forward`` that are not given keep their defaults, so that decisions on them can be traced."""
    parameters = list(inspect.signature(model.forward).parameters.values())[given:]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class _Walk(fx.Interpreter):
    """Runs the graph, and notes for every value where its channels are."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.book = Book(model)
        self.folds: dict[str, str] = {}
        self.axes: dict[fx.Node, Axis] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        try:
            axis = self._follow(n, result)
        except NoRule as reason:
            self._fix(n, f"{_describe(n)} {reason}")
            axis = None
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        if axis is not None:
            self.axes[n] = axis
        return result

    def _fix(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            if source in self.axes:
                self.book.fix(self.axes[source].segments, reason)

    def _follow(self, node: fx.Node, result: object) -> Axis | None:
        if node.op == "placeholder":
            return None
        if node.op == "get_attr":
            if isinstance(result, Tensor):
                self.book.use_elsewhere(result, f"the forward pass reads {node.target!r} outside of its layer")
            return None
        if node.op == "output":
            self._fix(node, "they are outputs of the network")
            return None
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            return None  # sizes and the like
        if not isinstance(result, Tensor):
            raise NoRule("gives more than one tensor")
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            return self._layer(node, layer, result)
        return self._operation(node, result)

    def _layer(self, node: fx.Node, layer: nn.Module, result: Tensor) -> Axis | None:
        axes = axes_of(layer)
        if axes is not None and type(layer) is not nn.PReLU:
            return self._with_channels(node, layer)
        (source,) = node.all_input_nodes if len(node.all_input_nodes) == 1 else (None,)
        axis = self.axes.get(source) if source is not None else None
        if source is not None and axis is None:
            return None
        if axis is None or source is None:
            raise NoRule(why_no_rule(layer))
        shape = self.shapes[source]
        if axes is not None:
            for name, dim, role in axes.keeps:
                self._use(layer, name, dim, role, axis.segments)
            return axis
        if isinstance(layer, _CURVED_LAYERS):
            self.book.bend(axis.segments, f"{type(layer).__name__} is not positively homogeneous")
            return axis
        if isinstance(layer, _HOMOGENEOUS_LAYERS):
            return axis
        if isinstance(layer, nn.Flatten):
            return reshaped(axis, shape, result.shape)
        spatial = len(shape) - 2 if isinstance(layer, _RESIZING_LAYERS) else _SPATIAL_LAYERS.get(type(layer))
        if spatial is not None and axis.dim < len(shape) - spatial:
            return axis
        raise NoRule(why_no_rule(layer))

    def _with_channels(self, node: fx.Node, layer: nn.Module) -> Axis | None:
        """A layer that makes, reads or keeps channels."""
        axes = axes_of(layer)
        source = node.all_input_nodes[0]
        shape = self.shapes[source]
        dim = channel_dim(layer, len(shape))
        axis = self.axes.get(source)
        if axis is not None and axis.dim != dim:
            self.book.fix(axis.segments, f"{_describe(node)} works along another axis")
            axis = None
        segments = axis.segments if axis is not None else (Segment(None, shape[dim]),)
        assert axes is not None
        for name, axis_dim, role in axes.reads:
            self._use(layer, name, axis_dim, role, segments)
        if axes.makes:
            weight, weight_dim, _ = axes.makes[0]
            segments = self.book.make(str(node.target), layer.get_parameter(weight), weight_dim)
        else:
            segments = tuple(s._replace(repeat=s.repeat * axes.multiplier) for s in segments)
        for name, axis_dim, role in (*axes.makes, *axes.keeps):
            self._use(layer, name, axis_dim, role, segments)
        if type(layer) in BATCH_NORMS:
            self._batch_norm(node, layer, source, segments)
        return Axis(dim, segments)

    def _batch_norm(self, node: fx.Node, layer: nn.Module, source: fx.Node, segments: Segments) -> None:
        if layer._parameters["weight"] is None:
            self.book.bend(segments, f"{_describe(node)} has no γ")
        before = str(source.target)
        alone = source.op == "call_module" and len(source.users) == 1
        if alone and self.calls[node.target] == self.calls[source.target] == 1:
            makes = axes_of(self.module.get_submodule(before))
            if makes is not None and makes.makes:
                self.folds[str(node.target)] = before

    def _use(self, layer: nn.Module, name: str, dim: int, role: Any, segments: Segments) -> None:
        tensor = own_tensor(layer, name)
        if tensor is not None:
            self.book.use(tensor, dim, role, segments)

    def _operation(self, node: fx.Node, result: Tensor) -> Axis | None:
        sources = [source for source in node.all_input_nodes if source in self.shapes]
        if not any(source in self.axes for source in sources):
            return None
        name = name_of(node)
        if name in _SUMS | _PRODUCTS and len(node.args) == 2:
            return self._join(node, name, sources, result)
        if name in ("cat", "concat", "concatenate"):
            return self._concatenate(node, result)
        source = sources[0]
        axis = self.axes.get(source)
        if len(sources) > 1 or axis is None:
            raise NoRule("has no channel rule")
        shape = self.shapes[source]
        if _HOMOGENEOUS.fullmatch(name):
            return axis
        if _CURVED.fullmatch(name):
            self.book.bend(axis.segments, f"{name} is not positively homogeneous")
            return axis
        if name in _RESHAPES:
            after = reshaped(axis, shape, result.shape)
            if name in ("view", "reshape") and size_is_written(node, after.dim):
                raise NoRule("has a number of channels written into it (flatten(1) has not)")
            return after
        if name in _SPATIAL or name in ("interpolate", "upsample"):
            if axis.dim < len(shape) - _SPATIAL.get(name, len(shape) - 2):
                return axis
        elif name in _REDUCTIONS:
            return reduced(axis, node, len(shape), result.ndim)
        elif name in ("permute", "transpose"):
            return Axis(moved(axis.dim, node, len(shape)), axis.segments)
        elif name == "pad":
            return self._pad(node, axis, len(shape))
        elif name == "getitem":
            return indexed(axis, node.args[1])
        raise NoRule("has no channel rule")

    def _join(self, node: fx.Node, name: str, sources: list[fx.Node], result: Tensor) -> Axis:
        """Sums and products of values whose channels have to be alike."""
        what = f"{_describe(node)} {_UNLIKE}"
        found: Axis | None = None
        for source in sources:
            axis, shift = self.axes.get(source), result.ndim - len(self.shapes[source])
            if axis is None:
                continue
            here = Axis(axis.dim + shift, axis.segments)
            if found is None:
                found = here
            elif found.dim != here.dim:
                raise NoRule("meets channels along different axes")
            else:
                self.book.join(found.segments, here.segments, what)
        assert found is not None
        constant = False
        for source in sources:
            if source not in self.axes:
                shape = self.shapes[source]
                dim = found.dim - result.ndim + len(shape)
                constant = True
                if dim >= 0 and shape[dim] != 1:
                    raise NoRule("takes numbers for single channels from elsewhere")
        if name in _PRODUCTS:
            divided = name.endswith(("div", "divide")) and node.args[-1] in sources
            if len(sources) > 1 or node.args[0] is node.args[1] or divided or constant:
                self.book.bend(found.segments, "a product of channels is not positively homogeneous")
        elif constant or any(term not in sources and term != 0 for term in node.args):
            self.book.bend(found.segments, "a constant is added to them")
        return found

    def _concatenate(self, node: fx.Node, result: Tensor) -> Axis:
        given, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
        if not isinstance(given, list | tuple):
            raise NoRule("has no channel rule")
        parts: list[fx.Node] = list(given)
        axes = [self.axes.get(part) for part in parts]
        dims = {axis.dim for axis in axes if axis is not None}
        if len(dims) != 1 or not isinstance(dim, int):
            raise NoRule("meets channels along different axes")
        (own,) = dims
        if own != dim % result.ndim:
            if any(axis is None for axis in axes):
                raise NoRule("meets channels that are not known")
            what = f"{_describe(node)} {_UNLIKE}"
            first, *others = (axis.segments for axis in axes if axis is not None)
            for other in others:
                self.book.join(first, other, what)
            return Axis(own, first)
        segments: list[Segment] = []
        for part, axis in zip(parts, axes, strict=True):
            size = self.shapes[part][own]
            segments.extend(axis.segments if axis is not None else (Segment(None, size),))
        return Axis(own, tuple(segments))

    def _pad(self, node: fx.Node, axis: Axis, rank: int) -> Axis:
        amounts, mode = argument(node, 1, "pad"), argument(node, 2, "mode", "constant")
        if not isinstance(amounts, list | tuple):
            raise NoRule("has no channel rule")
        place = 2 * (rank - 1 - axis.dim)
        low, high = (*amounts, *(0, 0) * rank)[place : place + 2]
        value = argument(node, 3, "value")
        if not all(isinstance(number, int) and number >= 0 for number in (low, high)):
            raise NoRule("takes channels away")
        if (low or high) and mode != "constant":
            raise NoRule("repeats channels")
        if value:
            self.book.bend(axis.segments, "a constant is added to them")
        ends = [(Segment(None, number),) if number else () for number in (low, high)]
        return Axis(axis.dim, (*ends[0], *axis.segments, *ends[1]))


def _describe(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"layer {node.target!r}"
    where = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
    return f"operation {name_of(node) or node.name!r}" + (f" in {where[-1]!r}" if where else "")


__all__ = ["trace"]
