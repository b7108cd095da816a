"""Settings of what lies below the KV pool, and the `StorageConfig` that they make."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from semshare.config import (
    MIN_DISK_BYTES,
    Compression,
    DonorFormat,
    EvictionName,
    StorageConfig,
)
from semshare.errors import InvalidRequest

_DEFAULTS = StorageConfig()
# Settings that say something only where others name what they are about.
_OF_DISK = ("storage_disk_bytes",)
_OF_REDIS = ("storage_redis_bytes",)
_OF_ANY = ("storage_eviction", "storage_format", "storage_compression", "storage_load_timeout_s")


class StorageSettings(BaseModel):
    """The part of `ServiceSettings` that names tiers; without any nothing lies below the pool."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    storage_host_bytes: ByteSize = Field(
        default=ByteSize(_DEFAULTS.host_bytes),
        ge=0,
        le=1 << 50,
        description="memory for donors that left the KV pool; 0: none",
    )
    storage_disk_path: Path | None = Field(
        default=None, description="folder for donors, of this process alone; they survive restarts"
    )
    storage_disk_bytes: ByteSize = Field(
        default=ByteSize(_DEFAULTS.disk_bytes),
        ge=MIN_DISK_BYTES,
        le=1 << 60,
        description="most that the folder may take",
    )
    # It may hold a password, so it is shown nowhere.
    storage_redis_url: SecretStr | None = Field(
        default=None,
        description="Redis or Valkey that processes share; needs the extra `redis`; secret, so "
        "better not a flag",
    )
    storage_redis_bytes: ByteSize = Field(
        default=ByteSize(_DEFAULTS.redis_bytes),
        ge=1,
        le=1 << 60,
        description="most that all processes' donors may take in it",
    )
    storage_eviction: EvictionName = Field(
        default=_DEFAULTS.eviction, description="who leaves a full tier first; Redis does lru"
    )
    storage_format: DonorFormat = Field(
        default=_DEFAULTS.donor_format, description="how donors are stored: exact, or smaller"
    )
    storage_compression: Compression = Field(
        default=_DEFAULTS.compression, description="smaller still, and slower"
    )
    storage_load_timeout_s: float = Field(
        default=_DEFAULTS.load_timeout_s,
        gt=0,
        le=3600,
        description="seconds that a request waits for stored KV before it is computed",
    )

    @model_validator(mode="after")
    def _only_of_tiers_that_are_named(self) -> StorageSettings:
        needs = (
            (_OF_DISK, "storage_disk_path", self.storage_disk_path is not None),
            (_OF_REDIS, "storage_redis_url", self.storage_redis_url is not None),
            (
                _OF_ANY,
                "storage_host_bytes, storage_disk_path or storage_redis_url",
                self._names_a_tier(),
            ),
        )
        for names, needed, is_there in needs:
            for name in names:
                value = getattr(self, name)
                if not is_there and value != StorageSettings.model_fields[name].default:
                    raise ValueError(
                        f"{name} is {value}, which does nothing without {needed}: set that too, "
                        f"or leave {name} out"
                    )
        return self

    def _names_a_tier(self) -> bool:
        return bool(
            self.storage_host_bytes
            or self.storage_disk_path is not None
            or self.storage_redis_url is not None
        )

    def storage(self) -> StorageConfig | None:
        """What the engine is given; None where no tier is named.

        Raises:
            InvalidRequest: this machine does not have what a tier needs.

        """
        if not self._names_a_tier():
            return None
        folder, secret = self.storage_disk_path, self.storage_redis_url
        redis_url = None if secret is None else secret.get_secret_value()
        if folder is not None:
            _check_folder(folder)
        if redis_url is not None:
            _check_redis(redis_url)
        return StorageConfig(
            host_bytes=int(self.storage_host_bytes),
            disk_path=None if folder is None else str(folder),
            disk_bytes=int(self.storage_disk_bytes),
            redis_url=redis_url,
            redis_bytes=int(self.storage_redis_bytes),
            eviction=self.storage_eviction,
            donor_format=self.storage_format,
            compression=self.storage_compression,
            load_timeout_s=self.storage_load_timeout_s,
        )


def _check_folder(path: Path) -> None:
    """Make it, as its tier would do once the model is loaded."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts lie in it
    except OSError as error:
        problem = error.strerror
    else:
        if os.access(path, os.R_OK | os.W_OK | os.X_OK):
            return
        problem = "this user can't write there"
    raise InvalidRequest(
        f"can't use storage_disk_path {path}: {problem}; name a folder on a local disk that this "
        "process may write"
    )


def _check_redis(url: str) -> None:
    if importlib.util.find_spec("redis") is None:
        raise InvalidRequest(
            "storage_redis_url is set, but the package redis is not installed: install "
            "`semshare[redis]`, or leave the setting out"
        )
    from semshare.kv.tiers.redis_url import parse  # noqa: PLC0415 - an extra

    try:
        parse(url)
    except InvalidRequest as error:  # which does not quote the URL
        raise InvalidRequest(f"storage_redis_url: {error}") from None
