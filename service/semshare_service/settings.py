"""The one settings object of the service: TOML file, `SEMSHARE_*` environment, flags.

Later ones win: defaults, file, environment, flags. An unknown key in any of them is an error.
docs/service.md documents every field; a test holds the two together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from semshare.config import EngineConfig
from semshare.errors import InvalidRequest
from semshare_service.storage_settings import StorageSettings

ENV_PREFIX = "SEMSHARE_"
CONFIG_VARIABLE = "SEMSHARE_CONFIG"
# Read elsewhere: by kernels, evaluation and clients. A shell that sets them still serves.
_NOT_SETTINGS = frozenset(("SEMSHARE_NATIVE", "SEMSHARE_DATA", "SEMSHARE_API_KEY"))
# What Kubernetes puts into every container beside a Service called semshare or semshare-….
_SERVICE_LINK = re.compile(
    r"SEMSHARE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


class TenantSettings(BaseModel):
    """One tenant: the digests of its keys, and what it may take (None: no bound)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: tuple[Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")], ...] = Field(
        min_length=1
    )
    operator: bool = False
    max_concurrency: int | None = Field(default=None, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_donors: int | None = Field(default=None, ge=0)
    max_donor_bytes: ByteSize | None = Field(default=None, ge=0)


TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def check_tenant_name(name: str) -> None:
    """Raise `InvalidRequest` for a name that no tenant can have."""
    try:
        TypeAdapter(TenantName).validate_python(name)
    except ValidationError:
        raise InvalidRequest(
            f"{name!r} can't name a tenant: use 1 to 64 letters, digits, dots, underscores and "
            "hyphens"
        ) from None


def _from_json(value: object) -> object:
    """A table as a variable or a flag can hold it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("outside of the settings file, tenants are written as JSON") from None


class ServiceSettings(StorageSettings, BaseSettings):
    """Settings of one service process. Sizes are in bytes and may be written `2GiB`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8765, ge=0, le=65535, description="port; 0: any free one")
    allow_remote: bool = Field(
        default=False,
        description="listen on an address other machines can reach, though no key is asked for",
    )
    tenants: Annotated[dict[TenantName, TenantSettings], BeforeValidator(_from_json)] = Field(
        default={}, description="who may ask, by name: digests of keys, and limits"
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate and its chain: serve HTTPS"
    )
    tls_key: Path | None = Field(default=None, description="PEM file with its private key")
    model: str = Field(default="smollm2", description="bundled name, local path or hub id")
    device: str = Field(default="cpu", description="cpu or cuda")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="the model's number format"
    )
    kv_budget_bytes: ByteSize = Field(
        default=ByteSize(EngineConfig().kv_budget_bytes), ge=1, description="most KV kept"
    )
    queue_limit: int = Field(
        default=32, ge=1, le=100_000, description="requests that may wait; one more gets 429"
    )
    concurrency: int = Field(
        default=16, ge=1, le=1024, description="requests that are served at the same time"
    )
    max_body_bytes: ByteSize = Field(
        default=ByteSize(4 << 20), ge=1024, description="largest request body"
    )
    max_kv_body_bytes: ByteSize = Field(
        default=ByteSize(1 << 30), ge=1024, description="largest KV that is brought (PUT /v1/kv)"
    )
    handle_ttl_s: float = Field(
        default=300.0, gt=0, le=86_400, description="seconds that prefilled KV is held, at most"
    )
    max_handles: int = Field(
        default=16, ge=1, le=100_000, description="prefilled prompts held for one tenant"
    )
    request_timeout_s: float = Field(
        default=300.0, gt=0, le=86_400, description="seconds one request may take, waiting included"
    )
    write_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds after which a stuck reader is dropped"
    )
    shutdown_timeout_s: float = Field(
        default=30.0, ge=0, le=3600, description="seconds running requests get after SIGTERM"
    )
    default_max_tokens: int = Field(
        default=256, ge=1, description="answer tokens where the request does not say"
    )
    recent_requests: int = Field(
        default=256, ge=0, le=100_000, description="answered requests kept to look at, per tenant"
    )
    shadow_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of approximately reused answers that is scored again in full",
    )
    shadow_max_divergence: float = Field(
        default=0.5,
        ge=0,
        description="KL in nats above which reuse steps down, where the request sets no bound",
    )
    read_timeout_s: float = Field(
        default=75.0,
        gt=0,
        le=3600,
        description="seconds a client may take to send a request's head, and then its body",
    )
    max_connections: int = Field(
        default=512, ge=1, le=100_000, description="open connections; an idle one makes way"
    )
    otlp_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+/")] | None = Field(
        default=None,
        description="URL that takes traces as OTLP over HTTP; needs the extra `otel`",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="log level; prompts are never logged"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="form of a log line")

    @classmethod
    def settings_customise_sources(
        cls, *_: Any, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given: `load_settings` reads the environment itself."""
        return (sources["init_settings"],)

    @model_validator(mode="after")
    def _loopback_unless_allowed(self) -> ServiceSettings:
        if not (self.allow_remote or self.tenants or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines and without tenants there "
                "is no authentication: use 127.0.0.1, give tenants keys (`semshare keys new`), or "
                "set allow_remote if the network is trusted"
            )
        return self

    @model_validator(mode="after")
    def _certificate_with_key(self) -> ServiceSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both or neither")
        return self

    @model_validator(mode="after")
    def _one_tenant_for_each_key(self) -> ServiceSettings:
        holders: dict[str, str] = {}
        for name, tenant in self.tenants.items():
            for digest in tenant.keys:
                if holders.setdefault(digest, name) != name:
                    raise ValueError(
                        f"tenants {holders[digest]!r} and {name!r} have a key in common: make one "
                        "for each with `semshare keys new`"
                    )
        return self


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host`. A name other than localhost may not be."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(arguments: Sequence[str] = ()) -> tuple[ServiceSettings, argparse.Namespace]:
    """Settings from the file, the environment and `arguments`, with the parsed arguments.

    Raises `InvalidRequest` that names the key and where it was found.
    """
    parser, source = _parser_and_source()
    parsed = parser.parse_args(arguments)
    source(parsed_args=parsed)
    config = parsed.config or os.environ.get(CONFIG_VARIABLE)
    values: dict[str, Any] = {} if config is None else _read_file(Path(config))
    values |= _read_environment(os.environ)
    values |= source()
    try:
        return ServiceSettings(**values), parsed
    except ValidationError as error:
        raise InvalidRequest(_describe(error)) from None


def _parser_and_source() -> tuple[argparse.ArgumentParser, CliSettingsSource[Any]]:
    parser = argparse.ArgumentParser(
        prog="semshare serve",
        description="Serve one model over HTTP. Every flag is also a key of the TOML file and, "
        f"with {ENV_PREFIX} before it and in capitals, an environment variable.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    parser.add_argument(
        "--json",
        action="store_true",
        help="once listening, print one JSON record with the address on standard output",
    )
    source: CliSettingsSource[Any] = CliSettingsSource(ServiceSettings, root_parser=parser)
    return parser, source


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for variable, value in environment.items():
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable in _NOT_SETTINGS or _is_service_link(variable, value):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in ServiceSettings.model_fields:
            known = ", ".join(ENV_PREFIX + field.upper() for field in ServiceSettings.model_fields)
            raise InvalidRequest(
                f"unknown environment variable {variable}: known are {CONFIG_VARIABLE}, {known}"
            )
        values[name] = value
    return values


def _is_service_link(variable: str, value: str) -> bool:
    if variable == ENV_PREFIX + "PORT":  # ours, unless it holds an address
        return "://" in value
    return _SERVICE_LINK.fullmatch(variable) is not None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"can't read the settings file {path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidRequest(f"the settings file {path} is not TOML: {error}") from None


def _describe(error: ValidationError) -> str:
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            level = TenantSettings if detail["loc"][0] == "tenants" else ServiceSettings
            known = ", ".join(level.model_fields)
            problems.append(f"unknown setting {name!r}: known are {known}")
        else:
            problems.append(f"{name}: {detail['msg']}" if name else detail["msg"])
    return "; ".join(problems)
