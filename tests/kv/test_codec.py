"""int8 keys and values: by hand, and within the documented error everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from semshare import InvalidRequest
from semshare.kv.codec import GROUP, LARGEST, Int8Codec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_a_row_of_bytes_by_hand() -> None:
    codec = Int8Codec(n_kv_heads=1, head_dim=3)
    rows = torch.tensor([[[127.0, -63.4, 0.6]], [[0.0, 0.0, 0.0]], [[-0.5, 0.25, 0.125]]])
    coded = codec.encode(rows)
    assert coded.shape == (3, codec.bytes_per_token) == (3, 3 + 2)
    assert coded[:, :3].view(torch.int8).tolist() == [[127, -63, 1], [0, 0, 0], [-127, 63, 32]]
    scales = np.frombuffer(coded[:, 3:].numpy().tobytes(), np.float16)
    # 1, 0, and the first float16 that is not below 0.5 / 127.
    assert scales[:2].tolist() == [1.0, 0.0]
    below = np.nextafter(scales[2], np.float16(0))
    assert float(below) < 0.5 / 127 <= float(scales[2])
    assert codec.decode(coded, torch.float32)[:2].tolist() == [
        [[127.0, -63.0, 1.0]],
        [[0.0, 0.0, 0.0]],
    ]


@pytest.mark.parametrize(
    ("heads", "d", "group", "size"),
    [(3, 2 * GROUP, GROUP, 3 * (64 + 2 * 2)), (2, 80, 80, 2 * (80 + 2)), (1, 5, 5, 5 + 2)],
)
def test_groups_are_of_32_channels_or_of_a_whole_head(
    heads: int, d: int, group: int, size: int
) -> None:
    codec = Int8Codec(heads, d)
    assert (codec.group, codec.bytes_per_token) == (group, size)
    # An outlier costs its own group precision, and no other.
    rows = torch.full((1, heads, d), 0.01)
    rows[0, 0, 0] = 100.0
    decoded = codec.decode(codec.encode(rows), torch.float32).flatten()
    lost = decoded == 0
    assert lost[1:group].all()
    torch.testing.assert_close(
        decoded[group:], torch.full_like(decoded[group:], 0.01), rtol=2**-10, atol=0.0
    )


@given(
    n=st.integers(0, 5),
    heads=st.integers(1, 3),
    d=st.sampled_from([1, 3, 8, 32, 33, 64]),
    # From below float16's least number to the largest that a scale can express.
    exponents=st.lists(st.integers(-30, 22), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@examples(300)
def test_every_number_comes_back_within_half_a_step(
    n: int, heads: int, d: int, exponents: list[int], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    powers = torch.tensor(exponents)[
        torch.randint(len(exponents), (n, heads, d), generator=generator)
    ]
    numbers = (torch.rand(n, heads, d, generator=generator) * 2 - 1) * torch.exp2(powers.float())
    limit = torch.finfo(dtype).max
    rows = numbers.clamp(-limit, limit).to(dtype)
    codec = Int8Codec(heads, d)
    decoded = codec.decode(codec.encode(rows), dtype)
    assert decoded.shape == rows.shape
    assert decoded.dtype == dtype

    def by_group(numbers: Tensor) -> Tensor:
        return numbers.double().flatten(1).unflatten(1, (-1, codec.group))

    exact = by_group(rows)
    largest = exact.abs().amax(-1, keepdim=True)
    scale = largest / 127 * (1 + 2**-10) + 2**-24
    half_step = scale * (0.5 + 2**-17)
    rounded = (exact.abs() + half_step) * (torch.finfo(dtype).eps / 2) + _least(dtype)
    error = (by_group(decoded) - exact).abs()
    bound = torch.where(largest > 0, half_step + rounded, 0)
    assert bool((error <= bound).all())


def _least(dtype: torch.dtype) -> float:
    """The smallest positive number of a dtype, a step of it near zero."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, LARGEST), (torch.bfloat16, 253 * 2.0**15), (torch.float16, 65_504.0)],
)
def test_the_largest_numbers_stay_finite(dtype: torch.dtype, most: float) -> None:
    row = torch.tensor([[[most, -most, 0.0]]], dtype=dtype)
    assert row[0, 0, 0].item() == most
    codec = Int8Codec(1, 3)
    decoded = codec.decode(codec.encode(row), dtype)
    torch.testing.assert_close(decoded, row, rtol=2**-10, atol=0.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, LARGEST * 1.001])
def test_what_int8_cannot_store_is_refused_with_the_limit(bad: float) -> None:
    rows = torch.ones(4, 2, 8)
    rows[2, 1, 3] = bad
    with pytest.raises(InvalidRequest, match=r"up to 8319008; keep donors in full"):
        Int8Codec(2, 8).encode(rows)
