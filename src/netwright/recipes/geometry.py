"""Recipes that put structure into the numbers: complex, on the globe, hyperbolic, covariance matrices."""

from typing import cast, get_args

from torch import nn

from netwright import checks
from netwright.data.splits import ALL_TASKS, IMAGES, TABLES, Splits, Task
from netwright.layers.complex_network import Inputs, Readout, to_complex
from netwright.layers.covariance_pooling import normalise_bimaps, to_covariance_pooling
from netwright.layers.hyperbolic_layers import Init
from netwright.layers.hyperbolic_network import Where, to_poincare
from netwright.layers.location import make_encoding
from netwright.layers.location_columns import encode_location, location_columns
from netwright.layers.spd_layers import BiMap
from netwright.layers.spd_norm import GBWBatchNorm
from netwright.recipes import Recipe


def _encode_location(
    model: nn.Module, splits: Splits, *, lat: str, lon: str, legendre_polys: int, encoding: str
) -> nn.Module:
    options = {"legendre_polys": legendre_polys} if encoding == "spherical-harmonics" else {}
    columns = location_columns(splits, make_encoding(encoding, **options), lat=lat, lon=lon)
    return encode_location(model, splits.train.inputs[:2], columns)


location_encoder = Recipe(
    name="location-encoder",
    claim="location-encoder",
    summary="Spherical harmonics of the place instead of columns of latitude and longitude in degrees, for the first "
    "linear layer; encoding: spherical-harmonics, cartesian3d, wrap, grid, sphere-c-plus, …",
    tasks=TABLES,
    options={
        "lat": "lat|latitude",
        "lon": "lon|lng|long|longitude",
        "legendre_polys": 10,
        "encoding": "spherical-harmonics",
    },
    build=_encode_location,
)


def _cov_pool(model: nn.Module, splits: Splits, *, n: int, eps: float) -> nn.Module:
    checks.at_least("option 'n' of recipe 'cov-pool'", n, 1)
    checks.positive("option 'eps' of recipe 'cov-pool'", eps)
    device = next((parameter.device for parameter in model.parameters()), None)
    return to_covariance_pooling(model, splits.train.inputs[:2].to(device), n, eps)


# free parameters, so that every optimiser and every learning rule of a chain keeps them on their manifolds
cov_pool = Recipe(
    name="cov-pool",
    claim="spd-gbw-norm",
    summary="Covariance of the last feature map, reduced to n×n by BiMap, and its logarithm, instead of pooling or "
    "flattening, and a new linear layer that reads it.",
    tasks=IMAGES,
    options={"n": 16, "eps": 1e-5},
    build=_cov_pool,
)


def _gbw_norm(model: nn.Module, splits: Splits, *, power: float, learn_metric: bool) -> nn.Module:  # noqa: ARG001
    def make(bimap: BiMap) -> GBWBatchNorm:
        weight = bimap.weight
        return GBWBatchNorm(bimap.n_out, power, learn_metric, free=bimap.free, device=weight.device, dtype=weight.dtype)

    return normalise_bimaps(model, make)


gbw_norm = Recipe(
    name="gbw-norm",
    claim="spd-gbw-norm",
    summary="Batch normalisation of SPD matrices with a learned metric behind every BiMap layer, for networks on SPD "
    "matrices and after cov-pool: cov-pool+gbw-norm.",
    tasks=ALL_TASKS,
    options={"power": 1.0, "learn_metric": True},
    build=_gbw_norm,
)


def _complex(
    model: nn.Module, splits: Splits, *, inputs: Inputs, activation: str, readout: str, whiten: bool
) -> nn.Module:
    checks.known("option 'inputs' of recipe 'complex'", inputs, ("zero", "fft"))
    checks.known("option 'readout' of recipe 'complex'", readout, ("auto", "abs", "real"))
    if readout == "auto":
        readout = "abs" if splits.task.is_classification else "real"
    elif readout == "abs" and not splits.task.is_classification:
        raise checks.InputError("option readout=abs of recipe 'complex' cannot give negative values; use readout=real")
    device = next((parameter.device for parameter in model.parameters()), None)
    example = splits.train.inputs[:2].to(device)
    return to_complex(
        model, example, inputs=inputs, readout=cast("Readout", readout), activation=activation, whiten=whiten
    )


complex_ = Recipe(
    name="complex",
    claim="complex-cnn",
    summary="Complex numbers between input and output, in about twice the parameters; inputs: zero (imaginary part) or "
    "fft (pictures as their spectrum); activation: crelu, zrelu, modrelu, cmodrelu, cardioid; readout: abs, real.",
    tasks=ALL_TASKS - {Task.NODE_CLASSIFICATION},
    options={"inputs": "zero", "activation": "crelu", "readout": "auto", "whiten": True},
    build=_complex,
)


def _to_poincare(
    model: nn.Module,
    splits: Splits,  # noqa: ARG001
    *,
    where: Where,
    c: float,
    init: Init,
    learn_c: bool,
) -> nn.Module:
    checks.known("option 'where' of recipe 'poincare':", where, get_args(Where))
    checks.known("option 'init' of recipe 'poincare':", init, get_args(Init))
    checks.positive("option 'c' of recipe 'poincare'", c)
    return to_poincare(model, where, c, init=init, learnable=learn_c)


poincare = Recipe(
    name="poincare",
    claim="poincare-resnet",
    summary="Layers of the Poincaré ball, on tangent vectors: linear layers, 2-D convolutions and batch normalisation, "
    "or with where=head, the last linear layer only; c is minus the curvature.",
    tasks=ALL_TASKS,
    options={"where": "all", "c": 0.1, "init": "identity", "learn_c": False},
    build=_to_poincare,
)


__all__ = ["complex_", "cov_pool", "gbw_norm", "location_encoder", "poincare"]
