"""Tests of ``netwright.layers.liegroups``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from netwright.layers.liegroups import SL, SO, GLPlus, LieGroup, Samples, SPDManifold

DOUBLE = torch.float64
GROUPS: list[LieGroup] = [SO(2), SL(2), GLPlus(2)]
seeds = st.integers(0, 10_000)


def elements(group: LieGroup, n: int, seed: int, covariance: float = 1.0) -> Tensor:
    """Elements far from the identity, of all angles."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(group, SO):
        far: LieGroup = SO(2, rotations="haar")
    else:
        far = type(group)(2, covariance=covariance, rotations="haar")
    return far.sample_pair(n, generator, dtype=DOUBLE).g


@given(seed=seeds, n=st.integers(2, 4), special=st.booleans())
def test_polar_factors(seed: int, n: int, special: bool) -> None:
    """g = P R with P symmetric positive definite and R a rotation, in every dimension."""
    g = torch.randn(6, n, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    determinants = torch.linalg.det(g)
    g[:, 0] *= determinants.sign()[:, None]
    if special:
        g /= determinants.abs()[:, None, None] ** (1 / n)
    group = SL(n) if special else GLPlus(n)
    p, r = group.polar(g)
    torch.testing.assert_close(p @ r, g)
    torch.testing.assert_close(p, p.mT)
    assert (torch.linalg.eigvalsh(p) > 0).all()
    torch.testing.assert_close(r @ r.mT, torch.eye(n, dtype=DOUBLE).expand_as(g), atol=1e-7, rtol=0)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(6, dtype=DOUBLE), atol=1e-7, rtol=0)


@given(seed=seeds, covariance=st.floats(1e-20, 4.0))
@pytest.mark.parametrize("group", [SL(2), GLPlus(2)], ids=["SL", "GL+"])
def test_the_chart_is_inverted_by_xi(group: GLPlus, seed: int, covariance: float) -> None:
    g = elements(group, 20, seed, covariance)
    coordinates = group.xi_inv(g)
    assert coordinates.shape == (20, group.dim)
    torch.testing.assert_close(group.xi(coordinates), g)
    p, r = group.polar(g)
    torch.testing.assert_close(coordinates[:, :-1], group.spd.xi_inv(p), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(coordinates[:, -1:], group.rotation.xi_inv(r))


def test_not_every_element_has_a_logarithm_but_each_has_coordinates() -> None:
    """diag(−2, −1/2) is in SL(2) and no exponential of a real matrix."""
    g = torch.diag(torch.tensor([-2.0, -0.5], dtype=DOUBLE))
    group = SL(2)
    coordinates = group.xi_inv(g)
    torch.testing.assert_close(group.xi(coordinates), g)
    expected = [math.sqrt(2) * math.log(2), 0.0, math.sqrt(2) * math.pi]
    torch.testing.assert_close(coordinates, torch.tensor(expected, dtype=DOUBLE))


@given(seed=seeds)
def test_coordinates_are_orthonormal(seed: int) -> None:
    """The length of coordinates is the norm of the trace metric, for every n."""
    for manifold in (SO(3), SPDManifold(3), SPDManifold(3, traceless=True), GLPlus(3), SL(3), *GROUPS):
        v = torch.randn(4, manifold.dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        x = manifold.hat(v)
        torch.testing.assert_close(torch.linalg.matrix_norm(x), v.norm(dim=-1))
        torch.testing.assert_close(manifold.vee(x), v)
        g = manifold.expm(v)
        torch.testing.assert_close(g, torch.linalg.matrix_exp(x))
        assert (torch.linalg.det(g) > 0).all()


def test_dimensions() -> None:
    assert [group.dim for group in GROUPS] == [1, 3, 4]
    assert [GLPlus(3).dim, SL(3).dim, SO(3).dim, SPDManifold(3, True).dim] == [9, 8, 3, 5]
    assert [group.volume_preserving for group in GROUPS] == [True, True, False]


@given(seed=seeds)
def test_logarithm_of_the_positive_factor(seed: int) -> None:
    for traceless in (False, True):
        manifold = SPDManifold(2, traceless)
        p, inverse = manifold.sample_pair(10, torch.Generator().manual_seed(seed), dtype=DOUBLE)
        torch.testing.assert_close(p @ inverse, torch.eye(2, dtype=DOUBLE).expand_as(p))
        torch.testing.assert_close(manifold.expm(manifold.xi_inv(p)), p)
        torch.testing.assert_close(manifold.sqrt(p) @ manifold.sqrt(p), p)
        if traceless:
            torch.testing.assert_close(torch.linalg.det(p), torch.ones(10, dtype=DOUBLE))


@pytest.mark.parametrize("group", GROUPS, ids=["SO", "SL", "GL+"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_samples_come_with_their_inverses(group: LieGroup, dtype: torch.dtype) -> None:
    pair = group.sample_pair(200, torch.Generator().manual_seed(0), dtype=dtype)
    assert isinstance(pair, Samples)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        pair.g @ pair.inverse, torch.eye(2, dtype=dtype).expand_as(pair.g), atol=tolerance, rtol=0
    )
    group.check(pair.g)
    again = group.sample_pair(200, torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(pair.g, again.g)
    state = torch.get_rng_state()
    group.sample_pair(3, torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


def test_log_normal_samples_have_their_covariance() -> None:
    """S has it, and the first factor of g = S^{1/2} R therefore half of the coordinates."""
    generator = torch.Generator().manual_seed(0)
    for manifold in (SPDManifold(2), SPDManifold(2, traceless=True)):
        found = manifold.xi_inv(manifold.sample_pair(20_000, generator, dtype=DOUBLE).g).T.cov()
        torch.testing.assert_close(found, 0.1 * torch.eye(manifold.dim, dtype=DOUBLE), atol=5e-3, rtol=0)
    g = GLPlus(2).sample_pair(20_000, generator, dtype=DOUBLE).g
    found = GLPlus(2).xi_inv(g)[:, :3].T.cov()
    torch.testing.assert_close(found, 0.025 * torch.eye(3, dtype=DOUBLE), atol=2e-3, rtol=0)


@given(n=st.integers(1, 12))
def test_equidistant_rotations_have_no_repeats(n: int) -> None:
    angles = SO(2).sample_pair(n, dtype=DOUBLE).g
    relative = SO(2).xi_inv(angles[:, None].mT @ angles) / math.sqrt(2)
    nearest = relative.abs().masked_fill(torch.eye(n, dtype=torch.bool)[..., None], math.pi).amin()
    assert nearest.item() == pytest.approx(2 * math.pi / n if n > 1 else math.pi, abs=1e-9)
    # they are a group of their own: a turn by one step permutes them
    turned = angles[1 % n] @ angles
    torch.testing.assert_close(turned, angles.roll(-1 % n if n == 1 else -1, 0), atol=1e-12, rtol=0)


def test_rotations_within_a_bound() -> None:
    angle = SO(2, bound=0.5).xi_inv(SO(2, bound=0.5).sample_pair(5, dtype=DOUBLE).g)[:, 0] / math.sqrt(2) / math.pi
    torch.testing.assert_close(angle, torch.tensor([-0.5, -0.25, 0, 0.25, 0.5], dtype=DOUBLE))
    assert torch.equal(SO(2, bound=0.5).sample_pair(1).g[0], torch.eye(2))
    generator = torch.Generator().manual_seed(0)
    angle = SO(2).xi_inv(SO(2, rotations="uniform", bound=0.25).sample_pair(2_000, generator).g) / math.sqrt(2)
    assert math.pi / 4 * 0.99 < angle.abs().max() <= math.pi / 4 + 1e-6
    angle = SO(2).xi_inv(SO(2, rotations="haar", bound=0.25).sample_pair(2_000, generator).g) / math.sqrt(2)
    assert torch.histc(angle, 4, -math.pi, math.pi).min() > 420


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_half_turns_count_as_pi(dtype: torch.dtype) -> None:
    """Products of rotations that make a half turn come out on both sides of the cut of the angle."""
    g = SO(2).sample_pair(12, dtype=dtype).g
    opposite = torch.cat((g[:6].mT @ g[6:], g[6:].mT @ g[:6]))
    assert len(set(opposite[:, 1, 0].sign().tolist())) > 1
    torch.testing.assert_close(SO(2).xi_inv(opposite), torch.full((12, 1), math.sqrt(2) * math.pi, dtype=dtype))
    assert SO(2).log(opposite[0])[1, 0] > 0


def test_ill_conditioned_elements() -> None:
    """Closed forms keep their digits where P is 10⁶ times longer in one direction, and where it is the identity."""
    r = SO(2).expm(torch.tensor([[1.0]], dtype=DOUBLE))
    for stretch in (1e-9, 1e-4, 0.0499, 0.0501, 1.0, math.log(1e3)):
        q = SO(2).expm(torch.tensor([[0.7]], dtype=DOUBLE))
        g = q @ torch.tensor([stretch, -stretch], dtype=DOUBLE).exp().diag() @ q.mT @ r
        found = SL(2).chart(g)[0, :2].norm() / math.sqrt(2)
        assert found.item() == pytest.approx(stretch, rel=1e-6)


@pytest.mark.parametrize("group", GROUPS, ids=["SO", "SL", "GL+"])
def test_gradients(group: LieGroup) -> None:
    g = elements(group, 4, seed=0)
    g[0] = torch.eye(2)
    assert gradcheck(group.chart, g.requires_grad_())
    v = (0.3 * torch.randn(3, group.dim, dtype=DOUBLE)).requires_grad_()
    assert gradcheck(group.expm, v)
    manifold = SPDManifold(2)
    coordinates = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.1, 0.0], [1.0, -1.0, 2.0]], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(manifold.expm, coordinates)


def test_groups_on_meta() -> None:
    with torch.device("meta"):
        group = GLPlus(2)
        pair = group.sample_pair(5)
        assert pair.g.is_meta
        assert group.xi_inv(pair.g).shape == (5, 4)
    assert group.xi_inv(torch.eye(2)).tolist() == [0, 0, 0, 0]


def test_bad_input() -> None:
    flipped = torch.diag(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="g must have positive determinants, got -1"):
        GLPlus(2).xi_inv(flipped)
    with pytest.raises(ValueError, match="g must have positive determinants, got 0"):
        GLPlus(2).polar(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="g must have positive determinants, got -1"):
        SL(2).polar(flipped)
    with pytest.raises(ValueError, match=r"g must have determinant 1 up to 0\.0001, got 1\.001"):
        SL(2).xi_inv(torch.stack((torch.eye(2), torch.diag(torch.tensor([1.001, 1.0])))))
    SL(2).check(torch.diag(torch.tensor([1.00005, 1.0])))
    with pytest.raises(ValueError, match="g must be rotations"):
        SO(2).xi_inv(2 * torch.eye(2))
    with pytest.raises(ValueError, match="determinant of -1"):
        SO(2).check(flipped)
    with pytest.raises(ValueError, match="p must be positive definite"):
        SPDManifold(2).log(flipped)
    with pytest.raises(ValueError, match="p must have determinant 1"):
        SPDManifold(2, traceless=True).sqrt(2 * torch.eye(2))
    for group in (SO(3), SL(3), GLPlus(3), SPDManifold(3)):
        with pytest.raises(ValueError, match="n must be 2 for samples, got 3"):
            group.sample_pair(4)
    with pytest.raises(ValueError, match="n must be 2 for coordinates of rotations, got 3"):
        SL(3).xi_inv(torch.eye(3))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        SL(2).sample_pair(0)
    with pytest.raises(ValueError, match="n must be at least 2, got 1"):
        GLPlus(1)
    with pytest.raises(ValueError, match=r"g must be matrices \(…, 2, 2\), got shape \(3, 3\)"):
        SL(2).xi_inv(torch.eye(3))
    with pytest.raises(ValueError, match="g must be of a floating-point type"):
        SL(2).xi_inv(torch.eye(2).long())
    with pytest.raises(ValueError, match=r"v must have 3 coordinates \(…, 3\), got shape \(4,\)"):
        SL(2).hat(torch.zeros(4))
    with pytest.raises(ValueError, match="unknown way to draw rotations 'equidistnat'; did you mean 'equidistant'"):
        SL(2, rotations="equidistnat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="covariance must be positive, got 0"):
        GLPlus(2, covariance=0)
    with pytest.raises(ValueError, match=r"bound must be in \(0, 1\], got 2"):
        SO(2, bound=2)
