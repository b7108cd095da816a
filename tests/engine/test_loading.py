"""Loading: what can't be loaded is explained, and conversions don't get into each other's way."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from tiny import tiny_model, tiny_tokenizer
from tqdm.auto import tqdm

from semshare.engine import loading
from semshare.engine.loading import load_model
from semshare.errors import InvalidRequest, ModelNotAvailable, UnsupportedModel


def saved_model(folder: Path) -> Path:
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def load(folder: Path, device: str = "cpu") -> tuple[Any, Any]:
    return load_model(str(folder), device=device, dtype=torch.float32)


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    model, tokenizer = load(saved_model(tmp_path))
    assert not model.training
    assert tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "cuda"])
def test_a_device_that_is_not_here_is_named_first(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(device != "cuda"))
    with pytest.raises(InvalidRequest, match=f"device is '{device}': choose cpu") as caught:
        load(tmp_path / "absent", device)
    assert ("cuda:0" in str(caught.value)) == (device != "cuda")


def test_an_absent_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotAvailable, match=r"absent.*bundled ones are smollm2"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("fields", [{"model_type": "unheard_of"}, {"model_type": "vit"}])
def test_an_unknown_kind_of_model_is_unsupported(tmp_path: Path, fields: dict[str, Any]) -> None:
    change_config(saved_model(tmp_path), **fields)
    with pytest.raises(UnsupportedModel, match="choose another model") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_not_available(tmp_path: Path) -> None:
    change_config(saved_model(tmp_path), intermediate_size=100)
    with pytest.raises(ModelNotAvailable, match=r"can't be loaded on cpu.*config\.json") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_cut_off_are_not_available(tmp_path: Path) -> None:
    weights = saved_model(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelNotAvailable, match="weights are whole"):
        load(tmp_path)


# ---- converting the bundled model


class Converted:
    """In place of a model and a tokenizer that transformers has read from a GGUF file."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "weights").write_text("own")


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "small.gguf"
    path.touch()
    reader = SimpleNamespace(from_pretrained=lambda *_, **__: Converted())
    monkeypatch.setattr(loading, "AutoTokenizer", reader)
    monkeypatch.setattr(loading, "AutoModelForCausalLM", reader)
    monkeypatch.setattr(loading, "_find_gguf", lambda _: path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def while_converting(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    def from_pretrained(*_: Any, **__: Any) -> Converted:
        action()
        return Converted()

    reader = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(loading, "AutoModelForCausalLM", reader)


def test_the_model_is_converted_once(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[None] = []
    while_converting(monkeypatch, lambda: runs.append(None))
    folder = loading.bundled_model_path("smollm2")
    assert (folder / "weights").read_text() == "own"
    assert loading.bundled_model_path("smollm2") == folder
    assert len(runs) == 1
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


def test_of_two_processes_one_converts_and_the_other_takes_what_it_made(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = loading.bundled_model_path("smollm2")
    shutil.rmtree(folder)
    while_converting(monkeypatch, lambda: pytest.fail("converted twice"))
    looked, is_complete = threading.Event(), loading._is_complete

    def first_look(path: Path) -> bool:
        complete = is_complete(path)
        looked.set()
        return complete

    monkeypatch.setattr(loading, "_is_complete", first_look)
    with ThreadPoolExecutor() as pool, FileLock(folder.with_suffix(".lock")):
        second = pool.submit(loading.bundled_model_path, "smollm2")
        assert looked.wait(60)
        folder.mkdir()
        (folder / "complete.json").touch()
        (folder / "weights").write_text("other's")
        # Leaving the block gives the lock back first, then waits for the other thread.
    assert second.result() == folder
    assert (folder / "weights").read_text() == "other's"


def test_a_damaged_folder_is_replaced(gguf: Path) -> None:
    folder = loading.bundled_model_path("smollm2")
    (folder / "complete.json").unlink()
    (folder / "weights").write_text("half")
    assert loading.bundled_model_path("smollm2") == folder
    assert (folder / "weights").read_text() == "own"


def test_progress_bars_of_the_conversion_are_not_shown(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    while_converting(monkeypatch, lambda: list(tqdm([1], desc="de-quantizing")))
    before = sys.stderr
    loading.bundled_model_path("smollm2")
    assert sys.stderr is before
    assert "de-quantizing" not in capsys.readouterr().err
