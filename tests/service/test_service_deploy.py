"""What is deployed and what operators read name only what the code has.

Nothing is built or started here: the files are parsed, and their names looked up.
"""

from __future__ import annotations

import configparser
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_engine import FakeEngine

from semshare.cli import app as commands
from semshare.config import ReusePolicy
from semshare.types import PoolUse, StorageUse, TierUse, Timings, TokenSource
from semshare_service.app import create_app
from semshare_service.errors import KINDS
from semshare_service.metrics import Metrics
from semshare_service.observed import Answered
from semshare_service.pool_watch import PoolSnapshot
from semshare_service.settings import ServiceSettings, TenantSettings, load_settings
from semshare_service.shadow import Shadow
from semshare_service.tenants import Tenant
from semshare_service.tracing import stages
from semshare_service.worker import WorkerStatus

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
SETTINGS = load_settings(["--config", str(DEPLOY / "semshare.toml")])[0]
# Where the files of compose.yaml and the unit put the service's settings and cache.
CONFIG, CACHE = "/etc/semshare/semshare.toml", "/var/cache/semshare"
STATE = Path("/var/lib/semshare")  # and stored donors


def parsed(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def families() -> set[tuple[str, str, str]]:
    """Name, type and help of every metric there is."""
    worker = WorkerStatus("ready", "fake", 1024, 0, 32, False, None, 0)
    below = StorageUse((TierUse("disk", 1, 1, {}),), waiting=0, counters={})
    use = PoolUse({}, 1, 1, 1, donors_evicted=0, storage=below)
    text = Metrics().exposition(worker, PoolSnapshot(use, 0.0), Shadow(0.0).counts(), tenant=None)
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text.decode(), re.MULTILINE))
    types = dict(re.findall(r"^# TYPE (\S+) (.+)$", text.decode(), re.MULTILINE))
    return {(name, types[name], help_) for name, help_ in helps.items()}


def series() -> set[str]:
    """The names that a query may use."""
    names = set()
    for name, type_, _ in families():
        suffixes = ("_bucket", "_sum", "_count") if type_ == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


def alerts() -> dict[str, str]:
    """Expressions by name."""
    rules = [rule for group in parsed("alerts.yml")["groups"] for rule in group["rules"]]
    assert all(rule["labels"]["severity"] and rule["annotations"]["summary"] for rule in rules)
    return {rule["alert"]: rule["expr"] for rule in rules}


def test_the_table_of_metrics_is_the_registry() -> None:
    rows = re.findall(r"^\| `(semshare:\w+)` \| (\w+) \| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == families()


def test_alerts_ask_for_series_and_labels_that_exist() -> None:
    told = {name for expr in alerts().values() for name in re.findall(r"semshare:\w+", expr)}
    assert told
    assert told <= series()
    # What /metrics has at the start shows labels whose values the code names.
    assert 'semshare:mode_steps_total{direction="down"}' in alerts()["SemshareReuseSteppedDown"]
    assert 'semshare:kv_pool_bytes{state="free"}' in alerts()["SemsharePoolFull"]
    assert "semshare:tier_quarantined_total[1h]" in alerts()["SemshareTierQuarantine"]


def test_the_queues_alert_is_below_the_limit() -> None:
    (threshold,) = re.findall(r"num_requests_waiting > (\d+)", alerts()["SemshareQueueHigh"])
    assert int(threshold) < SETTINGS.queue_limit


def test_every_alert_has_its_entry_in_the_runbook() -> None:
    assert set(re.findall(r"^\| `(Semshare\w+)` \|", DOCUMENT, re.MULTILINE)) == set(alerts())


def test_the_document_names_what_exists() -> None:
    metrics = {name for name, _, _ in families()} | series()
    assert set(re.findall(r"semshare:\w+", DOCUMENT)) <= metrics
    known = {
        *ServiceSettings.model_fields,
        *TenantSettings.model_fields,
        *(field.name for field in fields(ReusePolicy)),
        *(kind.code for kind in KINDS),
        *(name for name, _, _ in stages(answered_through_all_stages())),
        *(f"tokens_{source.name.lower()}" for source in TokenSource),
        *parsed("compose.yaml")["services"]["semshare"],
        *("request_id", "completion_tokens", "ttl_s"),  # of logs and of donors
    }
    words = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)[` ]", DOCUMENT))
    assert words
    assert words <= known, words - known
    for path in re.findall(r"`(deploy/[\w./-]+)`", DOCUMENT):
        if path != "deploy/metrics.key":  # the operator's own
            assert (ROOT / path).is_file(), path


def answered_through_all_stages() -> Answered:
    (*_, last) = FakeEngine().stream("prompt", max_tokens=1)
    assert last.answer is not None
    timings = Timings(**{field.name: 1.0 for field in fields(Timings)})
    answer = replace(last.answer, timings=timings)
    return Answered("id", "chat", Tenant(), "default", "prompt", None, answer, 1.0, 0.0)


def test_prometheus_scrapes_a_route_of_the_service() -> None:
    config = parsed("prometheus.yml")
    (job,) = config["scrape_configs"]
    resources = create_app(lambda: None, ServiceSettings()).router.resources()
    assert job["metrics_path"] in {resource.canonical for resource in resources}
    compose = parsed("compose.yaml")["services"]
    mounted = dict(volume.split(":")[:2] for volume in compose["prometheus"]["volumes"])
    for source, target in mounted.items():
        if source.startswith("./"):
            assert (DEPLOY / source).is_file(), target
    assert config["rule_files"] == [mounted["./alerts.yml"]]
    (secret,) = compose["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert job["static_configs"][0]["targets"] == [f"semshare:{SETTINGS.port}"]
    assert f'up{{job="{job["job_name"]}"}}' in alerts()["SemshareDown"]


def test_an_operator_scrapes() -> None:
    assert SETTINGS.tenants["ops"].operator


def test_compose_runs_the_image_with_the_example() -> None:
    service = parsed("compose.yaml")["services"]["semshare"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["environment"] == {"SEMSHARE_CONFIG": CONFIG}
    assert f"./semshare.toml:{CONFIG}:ro" in service["volumes"]
    assert f"model-cache:{CACHE}" in service["volumes"]
    assert f"donors:{STATE}" in service["volumes"]
    named = {volume.split(":")[0] for volume in service["volumes"] if volume[0] != "."}
    assert named <= set(parsed("compose.yaml")["volumes"])
    assert service["ports"] == [f"127.0.0.1:{SETTINGS.port}:{SETTINGS.port}"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= stop_takes_s()


def stop_takes_s() -> float:
    """Requests, 2 s of last words, 2 s for tiers to close, four batches of traces of 2 s each."""
    return SETTINGS.shutdown_timeout_s + 2 + 2 + 8


def test_the_example_stores_donors_in_the_state_folder() -> None:
    assert SETTINGS.storage_disk_path is not None
    assert SETTINGS.storage_disk_path.parent == STATE
    assert SETTINGS.storage_redis_url is None


def test_the_valkey_to_begin_with_fits_its_settings() -> None:
    """It is commented out in both files, and works once it is not."""
    commented_out = re.compile(r"^  # (valkey:|  .+)$", re.MULTILINE)
    service = yaml.safe_load(commented_out.sub(r"  \1", (DEPLOY / "compose.yaml").read_text()))
    command = service["services"]["valkey"]["command"]
    assert {"valkey", "semshare", "prometheus"} == set(service["services"])
    example = (DEPLOY / "semshare.toml").read_text()
    commented = tomllib.loads("\n".join(re.findall(r"^# (storage_\w+ = .+)$", example, re.M)))
    settings = ServiceSettings(**commented)
    assert settings.storage_redis_url is not None
    assert settings.storage_redis_url.get_secret_value() == "redis://valkey:6379/0"
    (maxmemory,) = re.findall(r"--maxmemory (\d+)gb", command)
    assert settings.storage_redis_bytes <= int(maxmemory) * 2**30 * 0.9
    assert "--maxmemory-policy noeviction" in command


def test_the_unit_starts_a_command_with_the_example() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(DEPLOY / "semshare.service")
    service = unit["Service"]
    program, command, *arguments = service["ExecStart"].split()
    assert Path(program).name in project()["project"]["scripts"]
    assert command in {one.name or one.callback.__name__ for one in commands.registered_commands}
    assert arguments == ["--config", CONFIG]
    assert int(service["TimeoutStopSec"]) >= stop_takes_s()
    assert service["Environment"].split()[1:] == ["XDG_CACHE_HOME=/var/cache", hub_cache()]
    assert f"/var/cache/{service['CacheDirectory']}" == CACHE
    assert Path("/var/lib", service["StateDirectory"]) == STATE
    assert service["StateDirectoryMode"] == "0700"
    for name, value in {
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
    }.items():
        assert service[name] == value


def hub_cache() -> str:
    return f"HF_HOME={CACHE}/huggingface"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_image_copies_what_is_there_and_what_the_build_needs() -> None:
    copied = [
        source
        for line in instructions("COPY")
        if not line.startswith("--from=")
        for source in line.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in copied)
    packages = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= set(copied)
    assert {"pyproject.toml", project()["project"]["readme"]} <= set(copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)


def test_the_image_installs_extras_that_exist() -> None:
    (extras,) = re.findall(r"install '\.\[([\w,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(project()["project"]["optional-dependencies"])


def test_the_image_runs_a_command_as_another_user_with_known_settings() -> None:
    assert instructions("ENTRYPOINT") == ['["semshare"]']
    assert instructions("CMD") == ['["serve"]']
    assert instructions("USER") == ["semshare"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("VOLUME") == [CACHE, str(STATE)]
    assert f"--group semshare --mode 0700 {STATE}" in DOCKERFILE
    assert instructions("EXPOSE") == [str(ServiceSettings().port)]
    assert f"http://127.0.0.1:{ServiceSettings().port}/health" in DOCKERFILE
    assert hub_cache() in DOCKERFILE
    variables = re.findall(r"\bSEMSHARE_(\w+)=", DOCKERFILE)
    assert variables == ["HOST"]
    assert all(name.lower() in ServiceSettings.model_fields for name in variables)


def test_the_image_does_not_start_without_keys_on_all_addresses() -> None:
    (host,) = re.findall(r"SEMSHARE_HOST=(\S+)", DOCKERFILE)
    with pytest.raises(ValueError, match="no authentication"):
        ServiceSettings(host=host)
    assert SETTINGS.model_copy(update={"host": host}).tenants
