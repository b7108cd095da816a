"""Products of few rows: right to rounding, and a row's the same bits whatever else is computed."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor, nn

from semshare_kernels import few_rows_linear, few_rows_linears, native
from semshare_kernels.linear import cpu, reference

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # largest relative error of rounding
ODD = (1, 7, 63, 65)
compiled = pytest.mark.skipif(native.library() is None, reason="no compiled loops here")


@pytest.fixture(autouse=True)
def _no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without matrix instructions, where bfloat16 is ours too."""
    monkeypatch.setattr(cpu, "multiplies_in_amx", lambda dtype: False)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_right(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within what k products and sums in float32, then rounded to the dtype, can be off by.

    Higham, Accuracy and Stability of Numerical Algorithms, equation 3.5.
    """
    expected = reference.few_rows_linear(x.double(), weight.double(), bias)
    size = x.double().abs() @ weight.double().abs().T
    size = size if bias is None else size + bias.double().abs()
    steps = (weight.shape[1] + 1) * UNIT[torch.float32]
    summed = steps / (1 - steps) * size
    limit = summed + UNIT[x.dtype] * (expected.abs() + summed)
    assert out.dtype == x.dtype
    assert out.shape == expected.shape
    assert bool(((out.double() - expected).abs() <= limit).all())


def in_c(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By the loop in C, into memory that was full of NaN."""
    out = torch.full((*x.shape[:-1], len(weight)), float("nan"), dtype=x.dtype)
    with mock.patch.object(torch, "empty", return_value=out):
        return cpu.few_rows_linear(x, weight, bias)


@compiled
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("k", [*ODD, 576])
@pytest.mark.parametrize("n", [*ODD, 192])
def test_it_is_right(n: int, k: int, dtype: torch.dtype, with_bias: bool) -> None:
    weight = numbers(n, k, dtype=dtype, seed=1)
    bias = numbers(n, dtype=dtype, seed=2) if with_bias else None
    for rows in (2, 15, 16, 17, 33, 49, 64):
        x = numbers(rows, k, dtype=dtype, seed=rows)
        assert_right(in_c(x, weight, bias), x, weight, bias)


@compiled
def test_whole_numbers_come_out_exactly() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 2.0]])
    weight = torch.tensor([[1.0, 0.0, 0.0], [4.0, 5.0, -6.0]])
    bias = torch.tensor([10.0, 20.0])
    assert in_c(x, weight, bias).tolist() == [[11.0, 16.0], [9.0, 4.0]]


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", UNIT)
def test_a_row_has_the_same_bits_among_any_others(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    x = numbers(cpu.MAX_ROWS, 83, dtype=dtype)
    weight, bias = numbers(70, 83, dtype=dtype, seed=1), numbers(70, dtype=dtype, seed=2)
    alone = torch.cat([in_c(row, weight, bias) for row in x.split(1)])
    for rows in range(1, cpu.MAX_ROWS + 1):
        assert torch.equal(in_c(x[:rows].contiguous(), weight, bias), alone[:rows])
        assert torch.equal(in_c(x[-rows:].contiguous(), weight, bias), alone[-rows:])


@compiled
def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    x, weight = numbers(20, 65), numbers(9, 65, seed=1)
    expected = in_c(x, weight)
    x[7] = float("nan")
    x[19] = float("inf")
    kept = torch.tensor([row not in (7, 19) for row in range(20)])
    out = in_c(x, weight)
    assert torch.equal(out[kept], expected[kept])
    assert out[7].isnan().all()
    assert not out[19].isfinite().any()


@compiled
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_show(value: float) -> None:
    x, weight = numbers(5, 16).abs() + 1, numbers(9, 16, seed=1)
    weight[8, 15] = value
    out = in_c(x, weight)
    assert out[:, :8].isfinite().all()
    assert not out[:, 8].isfinite().any()


@given(
    rows=st.integers(0, 70),
    n=st.integers(0, 40),
    k=st.integers(1, 40),
    dtype=st.sampled_from([*UNIT]),
    with_bias=st.booleans(),
    in_batches=st.booleans(),
)
@examples(60)
def test_any_number_of_rows_is_right(
    rows: int, n: int, k: int, dtype: torch.dtype, with_bias: bool, in_batches: bool
) -> None:
    x = numbers(rows, k, dtype=dtype)
    weight = numbers(n, k, dtype=dtype, seed=1)
    bias = numbers(n, dtype=dtype, seed=2) if with_bias else None
    out = few_rows_linear(x[None] if in_batches else x, weight, bias)
    assert_right(out[0] if in_batches else out, x, weight, bias)


ROWS = cpu.MIN_ROWS
GIVEN = {
    "too few rows": (numbers(cpu.MIN_ROWS - 1, 16), numbers(8, 16), None),
    "too many rows": (numbers(cpu.MAX_ROWS + 1, 16), numbers(8, 16), None),
    "rows apart": (numbers(2 * ROWS, 16)[::2], numbers(8, 16), None),
    "a transposed weight": (numbers(ROWS, 16), numbers(16, 8).T, None),
    "a bias with gaps": (numbers(ROWS, 16), numbers(8, 16), numbers(16)[::2]),
    "float64": (numbers(ROWS, 16).double(), numbers(8, 16).double(), None),
    "gradients": (numbers(ROWS, 16), numbers(8, 16).requires_grad_(), None),
}


@pytest.mark.parametrize("given_tensors", GIVEN.values(), ids=GIVEN)
def test_what_the_loop_does_not_take_is_torchs(
    given_tensors: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    assert not cpu.runs_in_c(*given_tensors)
    expected = nn.functional.linear(*given_tensors)
    assert torch.equal(few_rows_linear(*given_tensors), expected)


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        (numbers(ROWS, 15), numbers(8, 16), None),
        (numbers(ROWS, 16), numbers(8, 16), numbers(7)),
        (numbers(ROWS, 16), numbers(8, 16).bfloat16(), None),
    ],
)
def test_what_does_not_fit_is_torchs_error(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    with pytest.raises(RuntimeError):
        few_rows_linear(x, weight, bias)


def test_matrix_instructions_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies_in_amx", lambda dtype: dtype == torch.bfloat16)
    x, weight = numbers(ROWS, 16), numbers(8, 16)
    assert not cpu.runs_in_c(x.bfloat16(), weight.bfloat16(), None)
    assert cpu.runs_in_c(x, weight, None) == (native.library() is not None)


def test_without_a_compiler_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    x, weight, bias = numbers(ROWS, 16), numbers(8, 16), numbers(8)
    expected = nn.functional.linear(x, weight, bias)
    assert torch.equal(few_rows_linear(x, weight, bias), expected)
    with pytest.raises(RuntimeError, match="runs_in_c"):
        cpu.few_rows_linear(x, weight, bias)


@compiled
def test_a_models_linears_are_taken_over_within_and_only_there() -> None:
    model = nn.Sequential(nn.Linear(48, 96), nn.SiLU(), nn.Linear(96, 24, bias=False))
    x = numbers(ROWS, 48)
    with torch.inference_mode():
        first, _, last = model
        hidden = in_c(x, first.weight, first.bias)
        expected = in_c(nn.functional.silu(hidden), last.weight)
        with mock.patch.object(cpu, "few_rows_linear", wraps=cpu.few_rows_linear) as loop:
            model(x)
            assert loop.call_count == 0
            linears = few_rows_linears(x)
            for _ in range(2):  # one may be entered again
                with linears:
                    assert torch.equal(model(x), expected)
            assert loop.call_count == 4


@pytest.mark.parametrize(
    "x",
    [
        numbers(cpu.MIN_ROWS - 1, 16),
        numbers(cpu.MAX_ROWS + 1, 16),
        numbers(ROWS, 16).double(),
        numbers(ROWS, 16).to("meta"),
        numbers(ROWS, 0),
    ],
    ids=["too few", "too many", "float64", "another device", "no columns"],
)
def test_nothing_is_looked_at_where_torch_is_taken_anyway(x: Tensor) -> None:
    weight = torch.zeros(8, x.shape[1], dtype=x.dtype, device=x.device)
    with few_rows_linears(x), mock.patch.object(cpu, "runs_in_c") as asked:
        nn.functional.linear(x, weight)
    asked.assert_not_called()
