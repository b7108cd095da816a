"""The roofline table of `kernels/README.md` is the model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from semshare_kernels import roofline

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_the_table_is_the_models() -> None:
    shown = README.read_text().split("<!-- roofline: begin -->")[1].split("<!-- roofline: end")[0]
    assert shown.strip() == roofline.table()


def test_sharing_saves_nearly_as_many_times_the_bytes_as_there_are_sequences() -> None:
    shared = roofline.decode(32, 16_384, 1, 32, 32, 128)
    separate = roofline.separate_decode(32, 16_385, 32, 32, 128)
    assert separate.matrix_flops == shared.matrix_flops
    assert separate.bytes / shared.bytes == pytest.approx(32, rel=0.03)


def test_the_slowest_part_is_the_limit() -> None:
    work = roofline.Work("op", "shape", bytes=2.039e12, matrix_flops=624e12)
    assert work.seconds(roofline.A100) == pytest.approx(2.0)
    assert work.limit(roofline.A100) == "matrix units"
    assert work.limit(roofline.H100) == "matrix units"
    assert roofline.Work("op", "shape", bytes=1.0).limit(roofline.A100) == "memory"
