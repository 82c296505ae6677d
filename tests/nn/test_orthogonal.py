"""Orthogonal weights keep lengths and angles; wrong ones do not."""

import pytest
import torch
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn.orthogonal import DeltaOrthogonal, Orthogonal, orthogonal_matrix
from tests.tools import generator, normal


@pytest.mark.parametrize("shape", [(64, 64), (32, 64)])
def test_rows_are_orthonormal(shape):
    weight = orthogonal_matrix(shape, generator())
    assert torch.allclose(weight @ weight.T, torch.eye(shape[0]), atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (200, 64), (64, 200)])
def test_the_power_of_a_unit_is_kept_whatever_the_shape(shape):
    x = normal(2000, shape[1])
    out = x @ orthogonal_matrix(shape, generator()).T
    error = (2 / out.numel() * max(shape) / min(shape)) ** 0.5
    assert float(out.square().mean()) == pytest.approx(1.0, abs=5 * error)


def test_without_its_scale_a_tall_matrix_would_lose_power():
    tall = torch.nn.init.orthogonal_(torch.empty(200, 64), generator=generator())
    assert float((normal(2000, 64) @ tall.T).square().mean()) == pytest.approx(64 / 200, rel=0.05)


def test_it_is_uniform_not_biased_by_the_decomposition():
    diagonals = [float(orthogonal_matrix((3, 3), generator(seed)).diagonal().mean()) for seed in range(2000)]
    assert abs(sum(diagonals) / 2000) < 4 * (1 / 9 / 2000) ** 0.5 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gain_and_dtype(dtype):
    weight = Orthogonal(1.5)(torch.empty(64, 64, dtype=dtype), generator=generator())
    assert weight.dtype == dtype
    assert torch.allclose(weight.float() @ weight.float().T, 2.25 * torch.eye(64), atol=0.05)


@pytest.mark.parametrize("kernel", [(3,), (3, 5), (1, 3, 3)])
def test_a_delta_orthogonal_convolution_keeps_the_norm_exactly(kernel):
    weight = DeltaOrthogonal()(torch.empty(8, 8, *kernel), generator=generator())
    x = normal(4, 8, *[6] * len(kernel))
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    out = convolve(x, weight, padding=[size // 2 for size in kernel])
    assert float(out.norm()) == pytest.approx(float(x.norm()), rel=1e-5)


@pytest.mark.parametrize("initializer", [Orthogonal(), DeltaOrthogonal()])
def test_on_the_meta_device_there_is_nothing_to_draw(initializer):
    weight, draws = torch.empty(4, 4, 3, device="meta"), generator()
    before = draws.get_state()
    assert initializer(weight, generator=draws) is weight
    assert torch.equal(draws.get_state(), before)


@pytest.mark.parametrize("initializer", [Orthogonal(), DeltaOrthogonal()])
def test_the_generator_decides_what_is_drawn(initializer):
    first, again, other = (initializer(torch.empty(4, 4, 3), generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: Orthogonal(0.0), "gain must be positive"),
        (lambda: Orthogonal()(torch.empty(5)), "at least two dimensions"),
        (lambda: Orthogonal()(torch.empty(5, 0)), "without entries"),
        (lambda: Orthogonal()(torch.empty(5, 5, dtype=torch.long)), "floating-point numbers, got torch.int64"),
        (lambda: Orthogonal()(torch.empty(5, 5), generator=3), "give a torch.Generator"),
        (lambda: DeltaOrthogonal()(torch.empty(4, 4, 2)), "even size has no centre tap"),
        (lambda: DeltaOrthogonal()(torch.empty(4, 8, 3)), "as many outputs as inputs"),
    ],
)
def test_impossible_requests_get_one_sentence(action, sentence):
    with pytest.raises(BadInput, match=sentence):
        action()
