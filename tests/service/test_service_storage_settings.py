"""Settings of tiers below the pool: what the engine gets, what is refused, what stays secret."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from semshare import EngineConfig, SemShare
from semshare.config import StorageConfig
from semshare.errors import InvalidRequest
from semshare_service.serve import engine_loader, run
from semshare_service.settings import ServiceSettings, load_settings
from semshare_service.storage_settings import StorageSettings

URL = "rediss://user:hunter2@cache.example.org:6380/1"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SEMSHARE_")]:
        monkeypatch.delenv(name)


def storage_of(*flags: str) -> StorageConfig | None:
    return load_settings(flags)[0].storage()


def test_nothing_lies_below_the_pool_by_default() -> None:
    assert storage_of() is None


def test_a_tier_is_there_once_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "store"
    assert storage_of("--storage-host-bytes=1GiB") == StorageConfig(host_bytes=1 << 30)
    assert storage_of(f"--storage-disk-path={folder}") == StorageConfig(disk_path=str(folder))
    assert folder.stat().st_mode & 0o777 == 0o700  # prompts lie in it


def test_every_setting_of_the_engines_storage_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "semshare.toml"
    config.write_text(
        f'storage_host_bytes = "1MiB"\nstorage_disk_path = {json.dumps(str(tmp_path))}\n'
        'storage_disk_bytes = "2MiB"\nstorage_redis_bytes = "3MiB"\n'
        'storage_eviction = "lru"\nstorage_format = "int8"\nstorage_compression = "zstd"\n'
    )
    monkeypatch.setenv("SEMSHARE_STORAGE_REDIS_URL", URL)
    flags = ("--config", str(config), "--storage-load-timeout-s", "0.5")
    assert storage_of(*flags) == StorageConfig(
        host_bytes=1 << 20,
        disk_path=str(tmp_path),
        disk_bytes=2 << 20,
        redis_url=URL,
        redis_bytes=3 << 20,
        eviction="lru",
        donor_format="int8",
        compression="zstd",
        load_timeout_s=0.5,
    )
    assert len(StorageSettings.model_fields) == len(StorageConfig.__dataclass_fields__)


def test_the_engine_is_made_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[EngineConfig] = []

    def from_pretrained(_: str, *, config: EngineConfig, **__: Any) -> None:
        configs.append(config)

    monkeypatch.setattr(SemShare, "from_pretrained", from_pretrained)
    for settings in (ServiceSettings(), ServiceSettings(storage_host_bytes=7)):
        engine_loader(settings)()
    assert [config.storage for config in configs] == [None, StorageConfig(host_bytes=7)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--storage-disk-bytes=1GiB"], "storage_disk_bytes is 1073741824.*storage_disk_path"),
        (["--storage-redis-bytes=1GiB"], "storage_redis_bytes is 1073741824.*storage_redis_url"),
        (["--storage-redis-bytes=1GiB", "--storage-host-bytes=1"], "storage_redis_bytes.*_url"),
        (["--storage-eviction=lru"], "storage_eviction is lru, which does nothing without"),
        (["--storage-format=int8"], "storage_format is int8.*storage_host_bytes, storage_disk"),
        (["--storage-compression=zstd"], "leave storage_compression out"),
        (["--storage-load-timeout-s=1"], "storage_load_timeout_s is 1.0"),
        (["--storage-load-timeout-s=0"], "storage_load_timeout_s: .*greater than 0"),
        (["--storage-disk-path=x", "--storage-disk-bytes=1MiB"], "disk_bytes: .*2097152"),
        (["--storage-host-bytes=-1"], "storage_host_bytes: "),
        (["--storage-eviction=fifo"], "storage_eviction: .*'lru' or 's3-fifo'"),
    ],
)
def test_what_can_t_work_is_refused_with_its_name(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        load_settings(flags)


def test_a_folder_that_can_t_be_used_is_told_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, problem in ((file, "File exists"), (file / "below", "Not a directory")):
        with pytest.raises(InvalidRequest, match=f"storage_disk_path {path}: {problem}"):
            engine_loader(ServiceSettings(storage_disk_path=path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may always write
    with pytest.raises(InvalidRequest, match="this user can't write there"):
        engine_loader(ServiceSettings(storage_disk_path=tmp_path))


def test_a_missing_package_is_told_before_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match=r"install `semshare\[redis\]`"):
        engine_loader(ServiceSettings(storage_redis_url=URL))


def test_the_url_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SEMSHARE_STORAGE_REDIS_URL", URL)
    settings, _ = load_settings()
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())]
    for wrong in ("--port=x", "--storage-eviction=x", "--host=0.0.0.0"):
        with pytest.raises(InvalidRequest) as caught:
            load_settings([wrong])
        shown.append(str(caught.value))
    for wrong, message in (
        (URL.replace("rediss", "http"), "storage_redis_url: a Redis URL begins with one of redis"),
        (URL.replace("6380", "port"), "storage_redis_url: .*host, port or options can't be read"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            engine_loader(ServiceSettings(storage_redis_url=wrong))
        shown.append(str(caught.value))

    def from_pretrained(*_: Any, **__: Any) -> None:
        raise RuntimeError(URL)

    monkeypatch.setattr(SemShare, "from_pretrained", from_pretrained)
    with caplog.at_level(logging.DEBUG), pytest.raises(RuntimeError):
        run(settings.model_copy(update={"port": 0}))
    shown.append(caplog.text)
    assert "RuntimeError" in caplog.text
    assert not [one for one in shown if "hunter2" in one]


def test_help_does_not_show_what_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEMSHARE_STORAGE_REDIS_URL", URL)
    with pytest.raises(SystemExit):
        load_settings(["--help"])
    assert "hunter2" not in capsys.readouterr().out
