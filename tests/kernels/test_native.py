"""The loops in C: the same results, and nothing lost where they can't be had."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semshare_kernels import Rotation, native, nearest_codes, realign_keys

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler here"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and a library that is looked for again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def built(folder: Path) -> list[Path]:
    return list((folder / "semshare" / "native").glob("*.so"))


def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    (path,) = built(fresh)
    before = path.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library() is not None
    assert built(fresh) == [path]
    assert path.stat().st_mtime_ns == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_there_is_none(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert native.library() is None
    assert not built(fresh)


def test_it_can_be_switched_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMSHARE_NATIVE", "0")
    assert native.library() is None


def test_a_library_that_cannot_be_loaded_is_no_error(fresh: Path) -> None:
    native._built(os.environ.get("CC", "cc")).write_bytes(b"damaged")
    assert native.library() is None


def moved(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool after re-alignment, and nearest codes."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(300, 3, 24, generator=generator).to(dtype)
    slots = torch.randperm(300, generator=generator)
    angles = 100 * torch.rand(140, 10, generator=generator)
    realign_keys(pool, slots[:140], slots[150:290], Rotation(angles.cos(), angles.sin()))
    codes = torch.randint(-5, 5, (200, 3), generator=generator)
    return pool, nearest_codes(codes[:90], codes[90:], torch.arange(90), 60, k=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_are_the_same_without_it(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    assert native.library() is not None
    pool, nearest = moved(dtype)
    monkeypatch.setenv("SEMSHARE_NATIVE", "0")
    native.library.cache_clear()
    plain_pool, plain_nearest = moved(dtype)
    assert torch.equal(nearest, plain_nearest)
    # A product and a sum may be rounded once or twice, which now and then shows in 16 bits.
    limit = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps * 4
    assert float((pool.float() - plain_pool.float()).abs().max()) <= limit


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = 1e3 * torch.randn(500, 2, 8, generator=generator)
    angles = torch.rand(500, 4, generator=generator)
    turn = Rotation(angles.cos(), torch.zeros(500, 4))  # one product: rounded once by both
    pool = torch.cat((numbers, numbers)).bfloat16()
    expected = (pool[:500].float() * turn.cos.repeat(1, 2)[:, None]).bfloat16()
    realign_keys(pool, torch.arange(500), torch.arange(500, 1000), turn)
    assert torch.equal(pool[500:], expected)
    pool = torch.zeros(2, 1, 4, dtype=torch.bfloat16)
    pool[0, 0] = torch.tensor([1.0, float("inf"), -3.0, float("nan")])
    still = Rotation(torch.ones(1, 2), torch.zeros(1, 2))
    realign_keys(pool, torch.tensor([0]), torch.tensor([1]), still)
    assert pool[1, 0, 0] == 1.0
    assert pool[1, 0, 2] == -3.0
    assert pool[1, 0, [1, 3]].isnan().all()  # inf − NaN × 0


def test_it_brings_no_threads_of_its_own() -> None:
    """A second OpenMP runtime would have its own, which get in the way of torch's."""
    loaded = native.library()
    assert loaded is not None
    assert b"libgomp" not in Path(loaded._name).read_bytes()
