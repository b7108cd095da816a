"""How long a start takes is measured on new processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from semshare import ModelNotAvailable
from semshare.evaluation.start import run_start


def test_the_parts_of_a_start_add_up(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    record = run_start(model=str(tmp_path), dtype="float32", repeats=1)
    assert 0 < record["torch_s"] < record["imports_s"] < record["ready_s"]
    assert record["imports_s"] + record["load_s"] == pytest.approx(record["ready_s"], abs=2e-3)
    assert (record["n"], record["dtype"]) == (1, "float32")


def test_a_model_that_is_not_there_is_named_before_any_process_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelNotAvailable, match="absent"):
        run_start(model=str(tmp_path / "absent"), dtype="float32", repeats=1)
