"""Tests of ``netwright.layers.location_columns``."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from netwright.data import Splits, load
from netwright.data.globe import uniform_on_sphere
from netwright.layers.location import Cartesian3D
from netwright.layers.location_columns import LocationColumns, encode_location, location_columns
from netwright.layers.spherical_harmonics import SphericalHarmonics


def table(
    tmp_path: Path, places: Tensor | None = None, lat: str = "Latitude", lon: str = "lng"
) -> tuple[Path, pd.DataFrame]:
    places = uniform_on_sphere(200, torch.Generator().manual_seed(0)) if places is None else places
    height = torch.randn(len(places), dtype=torch.float64)
    frame = pd.DataFrame(
        {
            "height": height.numpy(),
            lat: places[:, 1].numpy(),
            "kind": ["a", "b"] * (len(places) // 2),
            lon: places[:, 0].numpy(),
        }
    )
    frame["target"] = (places[:, 1].sin() + height).numpy()
    path = tmp_path / "places.csv"
    frame.to_csv(path, index=False)
    return path, frame


def splits_of(path: Path) -> Splits:
    return load(path, target="target")


def test_undoes_the_normalisation_and_keeps_the_other_columns(tmp_path: Path) -> None:
    path, frame = table(tmp_path)
    splits = splits_of(path)
    columns = location_columns(splits, SphericalHarmonics(6))
    assert (splits.columns[columns.lat], splits.columns[columns.lon]) == ("Latitude", "lng")
    # each row of the parts is found in the file again
    found = columns.places(splits.test.inputs)
    original = torch.tensor(frame[["lng", "Latitude"]].to_numpy().copy())
    distance = (found[:, None] - original).abs().amax(2)
    assert distance.min(1).values.max() < 2e-5
    rows = distance.argmin(1)
    out = columns(splits.test.inputs)
    assert out.shape == (len(splits.test), 36 + 3) == (len(splits.test), columns.out_features)
    expected = SphericalHarmonics(6)(original[rows]) * (4 * torch.pi) ** 0.5
    torch.testing.assert_close(out[:, :36].double(), expected, atol=2e-5, rtol=0)
    others = [i for i, name in enumerate(splits.columns) if name in ("height", "kind=a", "kind=b")]
    assert torch.equal(out[:, 36:], splits.test.inputs[:, others])
    assert out[:, :36].square().mean(0).min() > 0.3  # about 1, as standardised columns


def test_noise_may_carry_a_place_over_a_pole() -> None:
    columns = LocationColumns(2, 0, 1, torch.zeros(2), torch.ones(2), SphericalHarmonics(5))
    beyond, same = columns(torch.tensor([[10.0, 100.0], [190.0, 80.0]]))
    torch.testing.assert_close(beyond, same, atol=1e-5, rtol=0)


def test_a_constant_column_is_its_mean() -> None:
    columns = LocationColumns(2, 0, 1, torch.tensor([5.0, 45.0]), torch.tensor([2.0, 0.0]), Cartesian3D())
    assert columns.places(torch.tensor([[1.0, 0.0]])).tolist() == [[7.0, 45.0]]
    assert columns.scale == 1


def test_the_first_linear_layer_gets_wider() -> None:
    columns = LocationColumns(3, 1, 0, torch.zeros(3), torch.full((3,), 10.0), SphericalHarmonics(4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3, bias=False)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    located = encode_location(model, torch.rand(2, 3), columns)
    assert [layer.in_features for layer in located.modules() if isinstance(layer, nn.Linear)] == [17, 3]
    assert not located.training
    assert located(torch.rand(5, 3)).shape == (5, 3)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Skip(nn.Module):
    """The columns go into two layers, and one of them may also see them added to something."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        self.one, self.two, self.added = nn.Linear(3, 3), nn.Linear(3, 3), added

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x) + self.two(x) + (x if self.added else 0)
        return out


def test_all_layers_that_take_the_columns_get_wider() -> None:
    columns = LocationColumns(3, 1, 0, torch.zeros(3), torch.ones(3), SphericalHarmonics(4))
    located = encode_location(Skip(added=False), torch.rand(2, 3), columns)
    assert located(torch.rand(4, 3)).shape == (4, 3)
    with pytest.raises(ValueError, match=r"must take the columns by its first linear layer alone .* 17 instead of 3"):
        encode_location(Skip(added=True), torch.rand(2, 3), columns)
    with pytest.raises(ValueError, match=r"widens the nn\.Linear that takes the 3 columns .* the network has none"):
        encode_location(nn.Sequential(nn.ReLU(), nn.Linear(3, 1)), torch.rand(2, 3) - 0.5, columns)


def test_keeps_its_result(tmp_path: Path) -> None:
    x = torch.rand(4, 3)
    networks = [
        encode_location(
            nn.Linear(3, 2), x, LocationColumns(3, 1, 0, torch.rand(3), torch.rand(3), SphericalHarmonics(3))
        )
        for _ in range(2)
    ]
    save_model(networks[0], str(tmp_path / "model.safetensors"))
    load_model(networks[1], str(tmp_path / "model.safetensors"))
    assert torch.equal(networks[0](x), networks[1](x))  # with the units of the saved one


def test_what_does_not_work(tmp_path: Path) -> None:
    harmonics = SphericalHarmonics(10)
    splits = splits_of(table(tmp_path)[0])
    with pytest.raises(
        ValueError, match=r"called longitude or x, found none; name it \(location-encoder\[lon=NAME\]\), one of"
    ):
        location_columns(splits, harmonics, lon="longitude|x")
    with pytest.raises(ValueError, match=r"called lat, found 'lat', 'Lat'"):
        location_columns(splits_of(table(tmp_path, lat="lat", lon="Lat")[0]), harmonics, lat="lat", lon="height")
    with pytest.raises(ValueError, match="needs a table with names and units of its columns"):
        location_columns(load("digits"), harmonics)
    with pytest.raises(ValueError, match="needs a table with names and units of its columns"):
        location_columns(splits.map(lambda x: 2 * x), harmonics)
    swapped = uniform_on_sphere(200).flip(1)
    with pytest.raises(ValueError, match="column 'Latitude' must hold latitudes in degrees, within ±90, got up to 17"):
        location_columns(splits_of(table(tmp_path, swapped)[0]), harmonics)
    town = torch.tensor([13.4, 52.5]) + 0.2 * torch.rand(200, 2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"lie within 0\.\d+°, and 10 degrees of spherical harmonics tell apart .* 18° away"
    ):
        location_columns(splits_of(table(tmp_path, town)[0]), harmonics)
    location_columns(splits_of(table(tmp_path, town)[0]), Cartesian3D())
    with pytest.raises(ValueError, match="longitude and latitude must be two of the 3 columns, got columns 1 and 1"):
        LocationColumns(3, 1, 1, torch.zeros(3), torch.ones(3), harmonics)
    with pytest.raises(ValueError, match=r"std must have shape \(3,\), got \(2,\)"):
        LocationColumns(3, 1, 0, torch.zeros(3), torch.ones(2), harmonics)
