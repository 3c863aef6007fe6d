"""Training in a random subspace (Li et al. 2018, arXiv:1804.08838): d numbers steer all D parameters of a network.

:class:`SubspaceModel` puts any network into a random subspace around its first weights; :func:`save_compressed` keeps
it as a seed and d numbers. How large d must be is measured in :mod:`netwright.training.intrinsic_dimension`.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from netwright import checks
from netwright.layers._cache import Cache
from netwright.training._projections import PROJECTIONS, fwht, make_projection

Projection = Literal["dense", "dense-blocks", "sparse", "fastfood", "fjlt"]

_FORMAT = "netwright-subspace-1"


class SubspaceModel(nn.Module):
    r"""A network whose D parameters are moved by d numbers alone.

    .. math:: \theta = \theta_0 + P \, \theta_d

    :math:`\theta_0` are the parameters that ``model`` has now, :math:`\theta_d` (``dim`` numbers, zero at first) is the
    only parameter that is left, and P, D×d, is fixed and random with columns of length 1. Weights, biases and the
    scales and shifts of normalisation all go through P; a tied parameter counts, and is projected, once. Parameters
    that are frozen (``requires_grad=False``) stay frozen and outside. Buffers, such as the statistics of batch
    normalisation, are updated as ever. Weight decay on :math:`\theta_d` pulls towards :math:`\theta_0`, not towards 0.

    ============ ======================================== ================== =========================
    projection   P                                        numbers stored     operations
    ============ ======================================== ================== =========================
    fastfood     H G Π H B (Le et al. 2013)               2 · 2^⌈log₂ D⌉     D log D, whatever d is
    sparse       ±1 with density 1/√D (Li et al. 2006)    3 d √D             d √D
    fjlt         B H S (Ailon and Chazelle 2009)          D + 3 d (ln D)²    D log D + d (ln D)²
    dense        Gaussian                                 d D                d D
    dense-blocks the same, drawn anew in every pass       none               d D, with the drawing
    ============ ======================================== ================== =========================

    A dense P for d = 1,000 and D = 200,000 takes 800 MB; the first three at most 1 % of that.

    In eval mode :math:`\theta` is computed once and kept. The state dict holds :math:`\theta_d`, :math:`\theta_0` and
    the seed of P; P itself is drawn again from the seed, on the CPU, wherever the model is loaded.

    Args:
        model: Any network; it is copied.
        dim: d, from 1 to D.
        projection: Which P.
        seed: Of P; from 0 to 2^63 - 1.
        per_layer: Give every layer a projection of its own (from the same :math:`\theta_d`), in which each layer has
            the same share of a column's length, instead of a share that grows with its number of parameters.

    Raises:
        InputError: If ``dim`` is not in [1, D], the model has no trainable parameter, the trainable parameters are of
            a complex type or on several devices, or one is not what its module reads (because a mask is attached).

    Source:
        arXiv:1804.08838, section 2; official code: uber-research/intrinsic-dimension.

    Example:
        >>> from netwright.models.vision.classic import MLP
        >>> model = SubspaceModel(MLP(64, (50,), 10), dim=100)
        >>> [tuple(p.shape) for p in model.parameters()], model.size
        ([(100,)], 3760)
        >>> model(torch.randn(2, 64)).shape
        torch.Size([2, 10])
    """

    settings: Tensor

    def __init__(
        self,
        model: nn.Module,
        dim: int,
        projection: Projection = "fastfood",
        seed: int = 0,
        per_layer: bool = False,
    ) -> None:
        super().__init__()
        checks.known("projection", projection, PROJECTIONS)
        checks.between("seed", seed, 0, 2**63 - 1)
        places = _trainable(model)
        self.size = sum(parameter.numel() for parameter in places)
        if not 1 <= dim <= self.size:
            checks.fail(f"dim must be in [1, {self.size}], the number of trainable parameters", dim)
        self.dim, self.projection, self.seed, self.per_layer = dim, projection, seed, per_layer
        self.model = copy.deepcopy(model)
        self._names = tuple(tuple(names) for names in places.values())
        _freeze(self.model, self._names)
        first = next(iter(places))
        self.theta_d = nn.Parameter(torch.zeros(dim, device=first.device, dtype=first.dtype))
        facts = (seed, list(PROJECTIONS).index(projection), per_layer)
        self.register_buffer("settings", torch.tensor(facts, dtype=torch.int64, device=first.device))
        self._cache: Cache[tuple[Tensor, ...]] = Cache()
        self._draw()

    def weights(self) -> dict[str, Tensor]:
        """The current parameters of the network inside, by name; a tied one under each of its names."""
        if self.training or type(self.theta_d) is not nn.Parameter:
            tensors = self._build()
        else:
            tensors = self._cache.get(self._build, self.theta_d, *self._start())
        return {name: tensor for names, tensor in zip(self._names, tensors, strict=True) for name in names}

    def materialize(self) -> nn.Module:
        """A plain network with the current weights as its parameters, all D of them trainable."""
        model = copy.deepcopy(self.model)
        weights = self.weights()
        for names in self._names:
            parameter = nn.Parameter(weights[names[0]].detach().clone())
            for name in names:
                path, _, own = name.rpartition(".")
                module = model.get_submodule(path)
                del module._buffers[own]
                module.register_parameter(own, parameter)
        return model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.weights(), args, kwargs, tie_weights=False)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._cache.clear()
        for names in self._names:
            path, _, own = names[0].rpartition(".")
            if own not in self.model.get_submodule(path)._buffers:
                raise checks.InputError(
                    f"layer {path!r} was replaced after the network was put into a subspace; "
                    "change the network first (as a recipe: put subspace last)"
                )
        return super().train(mode)

    def extra_repr(self) -> str:
        text = f"dim={self.dim}, size={self.size}, projection={self.projection!r}, seed={self.seed}"
        return f"{text}, per_layer=True" if self.per_layer else text

    def _start(self) -> list[Tensor]:
        """θ_0, in the order of the names."""
        return [self.model.get_buffer(names[0]) for names in self._names]

    def _build(self) -> tuple[Tensor, ...]:
        start = self._start()
        steps = torch.split(self.project(self.theta_d), [tensor.numel() for tensor in start])
        return tuple(
            tensor + step.view(tensor.shape).to(tensor.dtype) for tensor, step in zip(start, steps, strict=True)
        )

    def _draw(self) -> None:
        sizes = [tensor.numel() for tensor in self._start()]
        if self.per_layer:
            owners: dict[str, int] = {}
            for names, size in zip(self._names, sizes, strict=True):  # the parameters of a module follow each other
                owner = names[0].rpartition(".")[0]
                owners[owner] = owners.get(owner, 0) + size
            sizes = list(owners.values())
        else:
            sizes = [sum(sizes)]
        self.project = make_projection(
            self.projection, self.dim, sizes, self.seed, self.theta_d.device, self.theta_d.dtype
        )
        self._on_meta = self.theta_d.is_meta
        self._cache.clear()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}settings")
        if given is not None and not given.is_meta:
            seed, kind, per_layer = given.tolist()
            saved = (list(PROJECTIONS)[kind], bool(per_layer))
            if saved != (self.projection, self.per_layer):
                checks.fail(
                    f"the state dict must be of a model with projection={self.projection!r}, "
                    f"per_layer={self.per_layer}",
                    f"projection={saved[0]!r}, per_layer={saved[1]}",
                )
            if seed != self.seed or self._on_meta != self.theta_d.is_meta:
                self.seed = seed
                self._draw()
        super()._load_from_state_dict(state_dict, prefix, *args)


def save_compressed(model: SubspaceModel, path: str | Path, model_fn: Callable[[], nn.Module], init_seed: int) -> None:
    r"""Write a network as two seeds and :math:`\theta_d`: a safetensors file with the settings in its metadata.

    Buffers, which training has changed without the subspace (the statistics of batch normalisation), are written, too;
    first weights and frozen parameters are not: ``model_fn`` makes them again.

    Args:
        model: The trained network.
        path: The file.
        model_fn: Makes the network as it was before :class:`SubspaceModel`, under ``torch.manual_seed(init_seed)``.
        init_seed: That seed.

    Raises:
        InputError: If ``model_fn`` does not make the first weights of ``model`` under this seed.

    Example:
        >>> import tempfile
        >>> make = lambda: nn.Linear(1000, 10)
        >>> _ = torch.manual_seed(7)
        >>> model = SubspaceModel(make(), dim=20)
        >>> _ = nn.init.normal_(model.theta_d)
        >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> save_compressed(model, path, make, init_seed=7)
        >>> path.stat().st_size < 1_000
        True
        >>> x = torch.randn(3, 1000)
        >>> torch.equal(load_compressed(path, make)(x), model(x))
        True
    """
    again = SubspaceModel(_made(model_fn, init_seed), model.dim, model.projection, model.seed, model.per_layer)
    now, then = _fixed(model), _fixed(again)
    same = now.keys() == then.keys() and all(
        now[name].shape == then[name].shape and torch.equal(now[name].cpu(), then[name].cpu()) for name in now
    )
    if not same:
        raise checks.InputError(f"model_fn does not make the first weights of the model under init_seed={init_seed}")
    tensors = {f"buffers.{name}": tensor for name, tensor in _moving(model).items()} | {"theta_d": model.theta_d}
    metadata = {
        "format": _FORMAT,
        "dim": model.dim,
        "size": model.size,
        "projection": model.projection,
        "seed": model.seed,
        "per_layer": int(model.per_layer),
        "init_seed": init_seed,
        "fingerprint": " ".join(f"{number:.17g}" for number in _fingerprint(model)),
    }
    save_file(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
        path,
        {name: str(value) for name, value in metadata.items()},
    )


def load_compressed(path: str | Path, model_fn: Callable[[], nn.Module]) -> SubspaceModel:
    """Read what :func:`save_compressed` wrote. Torch's random generators are left as they are.

    Args:
        path: The file.
        model_fn: Makes the network, as it did when the file was written.

    Raises:
        InputError: If the file is not one of these, or the weights that come out are not those that went in: another
            ``model_fn``, or a version of torch that draws other random numbers.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise checks.InputError(f"{path} is not a safetensors file: {error}") from error
    if facts.get("format") != _FORMAT:
        checks.fail(f"the metadata of {path} must have the format {_FORMAT!r}", repr(facts.get("format")))
    made = _made(model_fn, int(facts["init_seed"]))
    model = SubspaceModel(
        made,
        int(facts["dim"]),
        facts["projection"],
        int(facts["seed"]),
        facts["per_layer"] == "1",
    )
    buffers = _moving(model)
    given = {name.removeprefix("buffers."): tensor for name, tensor in tensors.items() if name != "theta_d"}
    fits = buffers.keys() == given.keys() and all(buffers[name].shape == given[name].shape for name in given)
    if fits and model.size == int(facts["size"]):
        with torch.no_grad():
            model.theta_d.copy_(tensors["theta_d"])
            for name, buffer in buffers.items():
                buffer.copy_(given[name])
        expected = [float(number) for number in facts["fingerprint"].split()]
        # another machine may round the last bits of P in another way
        tolerance = 1e-4 * expected[0]
        if all(abs(a - b) <= tolerance for a, b in zip(expected, _fingerprint(model), strict=True)):
            return model
    raise checks.InputError(f"model_fn does not make the network that was saved in {path}")


def _trainable(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """The trainable parameters and all of their names."""
    places: dict[nn.Parameter, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            name = f"{path}.{own}".lstrip(".")
            checks.floating_point(f"parameter {name!r}", parameter)
            if hasattr(type(module), own):  # a property, which may change the parameter that it returns
                raise checks.InputError(
                    f"parameter {name!r} is not what its module reads, perhaps because of an attached mask; "
                    "make the mask permanent first"
                )
            places.setdefault(parameter, []).append(name)
    if not places:
        raise checks.InputError(f"found no trainable parameter, got a {type(model).__name__} without one")
    devices = {str(parameter.device) for parameter in places}
    if len(devices) > 1:
        checks.fail("the trainable parameters must be on one device", ", ".join(sorted(devices)))
    return places


def _freeze(model: nn.Module, groups: tuple[tuple[str, ...], ...]) -> None:
    """Turn the parameters of these names into buffers, so that no optimiser or pruning takes them for its own."""
    for names in groups:
        start: Tensor | None = None
        for name in names:
            path, _, own = name.rpartition(".")
            module = model.get_submodule(path)
            parameter = module._parameters.pop(own, None)
            if parameter is None:  # the module itself stands at several places
                continue
            start = parameter.detach() if start is None else start
            module.register_buffer(own, start)


def _made(model_fn: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return model_fn()


def _moving(model: SubspaceModel) -> dict[str, Tensor]:
    """The buffers that the network had before it was put into the subspace."""
    start = {name for names in model._names for name in names}
    fixed = start | {name for name, _ in model.model.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.model.state_dict().items() if name not in fixed}


def _fixed(model: SubspaceModel) -> dict[str, Tensor]:
    """θ_0 and the frozen parameters."""
    moving = _moving(model)
    return {name: tensor for name, tensor in model.model.state_dict().items() if name not in moving}


@torch.no_grad()
def _fingerprint(model: SubspaceModel) -> tuple[float, float]:
    """The length of all parameters together, and a sum of them that depends on their order, too."""
    tensors = _fixed(model) | model.weights()
    flat = torch.cat([tensor.detach().cpu().double().flatten() for _, tensor in sorted(tensors.items())])
    waves = torch.cos(torch.arange(len(flat), dtype=torch.float64, device="cpu"))
    return float(flat.norm()), float(flat @ waves)


__all__ = ["Projection", "SubspaceModel", "fwht", "load_compressed", "save_compressed"]
