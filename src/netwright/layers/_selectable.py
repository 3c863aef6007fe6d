"""What selectable layers share: families of functions, selection weights, phases, and the removal of families."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netwright import checks
from netwright.layers.kan import BASES, Basis, BSplineBasis, Range

Select = Literal["edge", "node", "layer"]
Mixing = Literal["softmax", "free"]
Phase = Literal["full", "selective", "pruned"]
Device = torch.device | str | None

SELECT: tuple[Select, ...] = ("edge", "node", "layer")
MIXING: tuple[Mixing, ...] = ("softmax", "free")
POOL: tuple[str, ...] = ("bspline", "rbf", "chebyshev", "fourier", "wavelet", "silu")


class PoolOptions(TypedDict, total=False):
    """What :class:`.SKANLayer` is told about its families and their selection."""

    pool: Sequence[str]
    num_basis: int
    order: int
    grid_range: Range
    select: Select
    mixing: Mixing
    normalize: bool | None


class Exchange(NamedTuple):
    """A parameter that pruning took away, and what stands in its place.

    Attributes:
        old: The parameter that is gone.
        new: The one in its place, if there is one.
        carry: ``carry(tensor, power)`` makes of a tensor like ``old`` one like ``new``: what is left, times α^power.
    """

    old: nn.Parameter
    new: nn.Parameter | None = None
    carry: Callable[[Tensor, int], Tensor] | None = None


class Family(nn.Module):
    """One family of a pool: its functions and their coefficients.

    The coefficients are ``(out, in, K, *kernel)``. After pruning they may be those of some ``units`` alone: outputs
    ``(number, in, K, *kernel)``, or edges ``(number, K, *kernel)``, by their places among all.
    """

    units: Tensor | None

    def __init__(self, basis: Basis, weight: Tensor) -> None:
        super().__init__()
        self.basis = basis
        self.weight = nn.Parameter(weight)
        self.register_buffer("units", None)


class Selectable(nn.Module):
    """A layer that mixes families; a subclass says what a product of functions with coefficients is.

    Attributes:
        pool: Names of the families that it started with.
        phase: ``"full"``, ``"selective"`` or ``"pruned"``; a pool of one has nothing to select and counts as pruned.
    """

    phase: Phase
    selection: nn.Parameter | None
    alive: Tensor | None
    bias: nn.Parameter | None
    dense_parameters = frozenset({"selection"})

    def __init__(
        self,
        features: int,
        shape: tuple[int, ...],
        bias: bool,
        groups: int,
        pool: Sequence[str],
        num_basis: int,
        order: int,
        grid_range: Range,
        select: Select,
        mixing: Mixing,
        normalize: bool | None,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if not pool:
            raise checks.InputError(f"pool must have one family or more of {', '.join(BASES)}, got none")
        for name in pool:
            checks.known("family", name, BASES)
        if len(set(pool)) < len(pool):
            checks.fail("pool must name each family once", ", ".join(pool))
        checks.known("select", select, SELECT)
        checks.known("mixing", mixing, MIXING)
        checks.at_least("number of outputs", shape[0], 1)
        self.pool = tuple(pool)
        self.select, self.mixing = select, mixing
        self.groups = groups
        self._features = features
        self._shape = shape
        self._options: dict[str, Any] = {
            "num_basis": num_basis,
            "order": order,
            "grid_range": grid_range,
            "normalize": normalize,
        }
        self.families = nn.ModuleDict()
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(shape[0], device=device, dtype=dtype)) if bias else None
        )
        self._grow(device, dtype)

    def _grow(self, device: Device, dtype: torch.dtype | None) -> None:
        """Make all families of the pool and, if there is a choice, the selection weights."""
        self.families.clear()
        for name in self.pool:
            self._add(name, device, dtype)
        selection = alive = None
        if len(self.pool) > 1:
            units = self._shape[: ("layer", "node", "edge").index(self.select)]
            start = 0.0 if self.mixing == "softmax" else 1 / len(self.pool)
            selection = nn.Parameter(torch.full((*units, len(self.pool)), start, device=device, dtype=dtype))
            alive = torch.ones_like(selection, dtype=torch.bool)
        self.register_parameter("selection", selection)
        self.register_buffer("alive", alive)
        self._set_phase()

    def _add(self, name: str, device: Device, dtype: torch.dtype | None) -> Family:
        basis = BASES[name](self._features, **self._options, device=device, dtype=dtype)
        outputs, inputs, *kernel = self._shape
        weight = torch.empty(outputs, inputs, basis.size, *kernel, device=device, dtype=dtype)
        receptive = weight[0, :, 0].numel()
        basis.draw_(weight, receptive, receptive // inputs * (outputs // self.groups))
        self.families[name] = family = Family(basis, weight)
        return family

    def _set_phase(self) -> None:
        if self.selection is None or self.alive is None:
            self.phase = "pruned"
            self._active = tuple(name for name in self.pool if name in self.families)
            return
        if self.alive.is_meta:
            self.phase, self._active = "full", self.pool
            return
        self.phase = "full" if bool(self.alive.all()) else "selective"
        used = self.alive.flatten(0, -2).any(0).tolist() if self.alive.ndim > 1 else self.alive.tolist()
        self._active = tuple(name for name, is_used in zip(self.pool, used, strict=True) if is_used)

    def family(self, name: str) -> Family:
        """One of the families that are left."""
        family = self.families[name]
        assert isinstance(family, Family)
        return family

    def alphas(self) -> Tensor:
        """The weights α of the families: ``(families,)``, ``(out, families)`` or ``(out, in, families)``.

        Once a family is selected, those of the others are 0 and its own stays as it is, so that the contribution of
        what is kept does not jump.

        Raises:
            InputError: If the layer is pruned and has none any more.
        """
        if self.selection is None or self.alive is None:
            raise checks.InputError("alphas needs a layer in phase 'full' or 'selective', got phase 'pruned'")
        alphas = self.selection.softmax(-1) if self.mixing == "softmax" else self.selection
        return alphas if self.phase == "full" else alphas * self.alive

    def choices(self) -> Counter[str]:
        """How many outputs, edges or layers (as ``select`` says) each family has; of the strongest, in phase full."""
        if self.phase != "pruned":
            chosen = self.alphas().abs().argmax(-1).flatten().bincount(minlength=len(self.pool))
            return Counter({name: int(n) for name, n in zip(self.pool, chosen, strict=True) if n})
        every = {"layer": 1, "node": self._shape[0], "edge": self._shape[0] * self._shape[1]}[self.select]
        units = {name: self.family(name).units for name in self._active}
        return Counter({name: every if held is None else len(held) for name, held in units.items()})

    @torch.no_grad()
    def select_(self) -> None:
        """End the full phase: of every unit only the family with the largest |α| takes part from now on.

        Raises:
            InputError: If the layer is not in phase ``"full"``.
        """
        if self.phase != "full" or self.alive is None:
            checks.fail("select_ needs a layer in phase 'full'", f"one in phase {self.phase!r}")
        strongest = self.alphas().abs().argmax(-1, keepdim=True)
        self.alive.zero_().scatter_(-1, strongest, True)
        self._set_phase()

    @torch.no_grad()
    def prune_(self) -> list[Exchange]:
        """End the selective phase: remove what does not take part, and multiply α into what is left.

        The layer computes the same as before. It has in · out · K coefficients of the selected families and neither
        selection weights nor families that no unit selected.

        Returns:
            The parameters that went, each with what stands in its place.

        Raises:
            InputError: If the layer is in phase ``"full"``, that is before anything was selected, or pruned already.
        """
        if self.phase != "selective" or self.alive is None or self.selection is None:
            checks.fail("prune_ needs a layer in phase 'selective'", f"one in phase {self.phase!r}")
        alphas = self.alphas()
        exchanged = [Exchange(self.selection)]
        for k, name in enumerate(self.pool):
            family = self.family(name)
            if name not in self._active:
                exchanged += map(Exchange, family.parameters())
                del self.families[name]
                continue
            units = self.alive[..., k].flatten().nonzero().squeeze(-1)
            if self.select != "layer" and len(units) < self.alive[..., k].numel():
                family.units = units
            carry = partial(self._carry, alphas[..., k], family.units)
            old = family.weight
            family.weight = nn.Parameter(carry(old, 1), old.requires_grad)
            exchanged.append(Exchange(old, family.weight, carry))
        self.selection, self.alive = None, None
        self._set_phase()
        return exchanged

    @torch.no_grad()
    def _update_grid(self, samples: Tensor, uniform: float) -> None:
        """Move the knots of the B-splines to quantiles of ``samples`` ``(number, features)``."""
        if "bspline" not in self.families:
            checks.fail("update_grid needs a layer with family 'bspline'", ", ".join(self._active))
        family = self.family("bspline")
        assert isinstance(family.basis, BSplineBasis)
        matrices = family.basis.update_grid(samples, uniform)
        matrices = matrices.reshape(self.groups, -1, *matrices.shape[1:])
        weight = self._dense(family)
        weight = weight.reshape(self.groups, -1, *weight.shape[1:])
        weight = torch.einsum("gibc,goic...->goib...", matrices, weight).flatten(0, 1)
        family.weight.copy_(weight if family.units is None else self._take(weight, family.units))

    @staticmethod
    def _scaled(weight: Tensor, alpha: Tensor) -> Tensor:
        return weight * alpha.reshape(alpha.shape + (1,) * (weight.ndim - alpha.ndim))

    def _carry(self, alpha: Tensor, units: Tensor | None, tensor: Tensor, power: int) -> Tensor:
        # α is 0 for what goes
        scaled = self._scaled(tensor, torch.where(alpha == 0, 0, alpha**power))
        return scaled if units is None else self._take(scaled, units)

    def _take(self, weight: Tensor, units: Tensor) -> Tensor:
        return (weight if self.select == "node" else weight.flatten(0, 1))[units]

    def _dense(self, family: Family) -> Tensor:
        """The coefficients with zeros for the units of other families."""
        if family.units is None:
            return family.weight
        axes = self._shape[: 1 if self.select == "node" else 2]
        tail = family.weight.shape[1:]
        full = family.weight.new_zeros(math.prod(axes), *tail).index_copy(0, family.units, family.weight)
        return full.view(*axes, *tail)

    def _times(self, values: Tensor, weight: Tensor) -> Tensor:
        """The product of functions ``(…, in, K)`` with coefficients ``(out, in, K, …)``."""
        raise NotImplementedError

    def _mixed(self, x: Tensor, axis: int) -> Tensor:
        """The sum over families for inputs whose features stand last; outputs stand on ``axis``."""
        if self.phase != "pruned":
            total = self._weighted_sum(x, axis)
        elif self.select == "node" and self.groups == 1 and len(self._active) > 1:
            total = self._side_by_side(x, axis)
        else:
            families = map(self.family, self._active)
            total = reduce(torch.add, (self._times(family.basis(x), self._dense(family)) for family in families))
        if self.bias is None:
            return total
        return total + self.bias.to(total.dtype).reshape(-1, *(1,) * (-1 - axis))

    def _weighted_sum(self, x: Tensor, axis: int) -> Tensor:
        alphas, total = self.alphas(), None
        for name in self._active:
            family, alpha = self.family(name), alphas[..., self.pool.index(name)]
            if self.select == "edge":
                part = self._times(family.basis(x), self._scaled(family.weight, alpha))
                total = part if total is None else total + part
                continue
            part = self._times(family.basis(x), family.weight)
            alpha = alpha.to(part.dtype).reshape(-1, *(1,) * (-1 - axis))
            total = part * alpha if total is None else torch.addcmul(total, part, alpha)
        assert total is not None
        return total

    def _side_by_side(self, x: Tensor, axis: int) -> Tensor:
        """Each family computes its own outputs, which are then put in order."""
        families = [self.family(name) for name in self._active]
        parts = torch.cat([self._times(family.basis(x), family.weight) for family in families], axis)
        places = torch.cat([family.units for family in families if family.units is not None]).argsort()
        return parts.index_select(axis, places)

    def _take_over(self, layer: nn.Linear | _ConvNd) -> None:
        """Take the bias of ``layer``, and what is frozen."""
        if not layer.weight.requires_grad:
            self.requires_grad_(False)
        if self.bias is not None and layer.bias is not None:
            self.bias.data.copy_(layer.bias)
            self.bias.requires_grad_(layer.bias.requires_grad)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the phase of the layer that was saved, too: its parameters differ from phase to phase."""
        stored = {name for name in self.pool if f"{prefix}families.{name}.weight" in state_dict}
        if stored and len(self.pool) > 1:
            like = next(iter(self.families.parameters()))
            if f"{prefix}selection" in state_dict:
                if self.phase == "pruned":
                    self._grow(like.device, like.dtype)
            else:
                self.selection, self.alive = None, None
                for name in self.pool:
                    if name not in stored:
                        if name in self.families:
                            del self.families[name]
                        continue
                    family = self.family(name) if name in self.families else self._add(name, like.device, like.dtype)
                    shape = state_dict[f"{prefix}families.{name}.weight"].shape
                    units = state_dict.get(f"{prefix}families.{name}.units")
                    family.units = None if units is None else torch.empty_like(units, device=like.device)
                    if family.weight.shape != shape:
                        family.weight = nn.Parameter(like.new_empty(shape), family.weight.requires_grad)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._set_phase()


__all__ = [
    "MIXING",
    "POOL",
    "SELECT",
    "Device",
    "Exchange",
    "Family",
    "Mixing",
    "Phase",
    "PoolOptions",
    "Select",
    "Selectable",
]
