"""Settings: where they come from, what is refused, and that every one is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semshare.errors import InvalidRequest
from semshare_service.settings import ServiceSettings, is_loopback, load_settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "service.md"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(f"SEMSHARE_{name.upper()}", raising=False)
    monkeypatch.delenv("SEMSHARE_CONFIG", raising=False)


def written(folder: Path, text: str) -> str:
    path = folder / "semshare.toml"
    path.write_text(text)
    return str(path)


def test_defaults_serve_this_machine_only() -> None:
    settings, _ = load_settings()
    assert (settings.host, settings.port, settings.allow_remote) == ("127.0.0.1", 8765, False)
    assert settings.model == "smollm2"


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, 'port = 1\nqueue_limit = 1\nmodel = "file"\n')
    monkeypatch.setenv("SEMSHARE_PORT", "2")
    monkeypatch.setenv("SEMSHARE_QUEUE_LIMIT", "2")
    settings, _ = load_settings(["--config", config, "--port", "3"])
    assert (settings.port, settings.queue_limit, settings.model) == (3, 2, "file")
    assert settings.device == "cpu"


def test_the_file_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMSHARE_CONFIG", written(tmp_path, "port = 7"))
    assert load_settings()[0].port == 7


def test_sizes_may_have_units(tmp_path: Path) -> None:
    config = written(tmp_path, 'max_body_bytes = "1MiB"')
    settings, _ = load_settings(["--kv-budget-bytes", "3GiB", "--config", config])
    assert settings.kv_budget_bytes == 3 << 30
    assert settings.max_body_bytes == 1 << 20


def test_an_unknown_key_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"unknown setting 'prot'.*port"):
        load_settings(["--config", written(tmp_path, "prot = 1")])


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMSHARE_PROT", "1")
    with pytest.raises(InvalidRequest, match=r"SEMSHARE_PROT.*SEMSHARE_PORT"):
        load_settings()


# As Kubernetes writes them for Services called semshare and semshare-web.
SERVICE_LINKS = {
    "SEMSHARE_SERVICE_HOST": "10.0.0.1",
    "SEMSHARE_SERVICE_PORT": "8765",
    "SEMSHARE_SERVICE_PORT_HTTP": "8765",
    "SEMSHARE_PORT": "tcp://10.0.0.1:8765",
    "SEMSHARE_PORT_8765_TCP": "tcp://10.0.0.1:8765",
    "SEMSHARE_PORT_8765_TCP_PROTO": "tcp",
    "SEMSHARE_PORT_8765_TCP_PORT": "8765",
    "SEMSHARE_PORT_8765_TCP_ADDR": "10.0.0.1",
    "SEMSHARE_WEB_SERVICE_HOST": "10.0.0.2",
    "SEMSHARE_WEB_PORT": "tcp://10.0.0.2:80",
    "SEMSHARE_WEB_PORT_80_TCP": "tcp://10.0.0.2:80",
}


def test_service_links_of_kubernetes_are_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEMSHARE_QUEUE_LIMIT", "5")
    settings, _ = load_settings()
    assert (settings.port, settings.queue_limit) == (8765, 5)
    settings, _ = load_settings(["--config", written(tmp_path, "port = 7")])
    assert settings.port == 7


@pytest.mark.parametrize("name", ["SEMSHARE_API_KEY", "SEMSHARE_DATA", "SEMSHARE_NATIVE"])
def test_variables_that_others_read_are_no_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0")
    load_settings()


@pytest.mark.parametrize("name", ["SEMSHARE_SERVICE", "SEMSHARE_PORT_X", "SEMSHARE_PORTS"])
def test_what_only_resembles_a_service_link_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidRequest, match=f"unknown environment variable {name}:"):
        load_settings()


def test_a_wrong_port_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMSHARE_PORT", "http")
    with pytest.raises(InvalidRequest, match="port: "):
        load_settings()


def test_settings_made_in_code_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMSHARE_PORT", "7")
    assert ServiceSettings().port == 8765


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--prot", "1"])
    assert caught.value.code == 2
    assert "--prot" in capsys.readouterr().err


def test_an_unknown_setting_in_code_is_refused() -> None:
    with pytest.raises(ValueError, match="prot"):
        ServiceSettings(prot=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "message"),
    [("port = 70000", "port: .*65535"), ("port = ", "is not TOML"), ('dtype = "x"', "dtype: ")],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        load_settings(["--config", written(tmp_path, text)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"absent\.toml: No such file"):
        load_settings(["--config", str(tmp_path / "absent.toml")])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])  # noqa: S104
def test_other_machines_need_an_explicit_setting(host: str) -> None:
    with pytest.raises(InvalidRequest, match=r"no authentication.*allow_remote"):
        load_settings([f"--host={host}"])
    assert load_settings([f"--host={host}", "--allow-remote"])[0].host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", DOCUMENT.read_text(), re.MULTILINE))
    assert set(rows) == set(ServiceSettings.model_fields)
    for name, field in ServiceSettings.model_fields.items():
        absent = rows[name] == "none" and field.default is None
        value = None if absent else rows[name]
        documented = ServiceSettings.model_validate({name: value})
        assert getattr(documented, name) == field.default, name


def test_every_setting_has_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--help"])
    usage = capsys.readouterr().out
    for name in ServiceSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in usage
    assert all(field.description for field in ServiceSettings.model_fields.values())
