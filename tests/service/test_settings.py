"""Settings: each from its variable and from an argument, wrong ones named, none changed later."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import attention_service
from attention_service.settings import Settings, default_modules, unknown_variables
from tests.conftest import ROOT

SERVICE = Path(attention_service.__file__).parent

# Field → a text as it stands in a variable, the value that it means, and a wrong text.
FIELDS: dict[str, tuple[str, Any, str | None]] = {
    "host": ("0.0.0.0", "0.0.0.0", None),
    "port": ("9000", 9000, "65536"),
    "modules": ("/srv/modules", Path("/srv/modules"), __file__),
    "modules_poll": ("0.5", 0.5, "-1"),
    "text_module": ("mine", "mine", None),
    "provider": ("cuda", "cuda", "gpu"),
    "workers": ("4", 4, "0"),
    "threads": ("3", 3, "0"),
    "trusted_proxies": ("10.0.0.1,fd00::/8", "10.0.0.1,fd00::/8", "10.0.0.1, proxy"),
    "root_path": ("/attention", "/attention", None),
    "max_body_bytes": ("4096", 4096, "1023"),
    "max_answer_bytes": ("8192", 8192, "many"),
    "memory_budget_bytes": ("2097152", 2**21, "1048575"),
    "batch_bytes": ("0", 0, "-1"),
    "max_running": ("7", 7, "0"),
    "max_waiting": ("0", 0, "-1"),
    "max_wait": ("0.5", 0.5, "-1"),
    "max_timeout": ("30", 30.0, "0"),
    "body_timeout": ("2.5", 2.5, "inf"),
    "drain_delay": ("0.5", 0.5, "-0.1"),
    "log_level": ("debug", "debug", "loud"),
    "log_format": ("json", "json", "xml"),
    "traces": ("true", True, "perhaps"),
    "api_keys_file": ("/etc/keys", Path("/etc/keys"), None),
}
WRONG = {name: wrong for name, (_, _, wrong) in FIELDS.items() if wrong is not None}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("ATTENTION_"):
            monkeypatch.delenv(name)


def test_every_field_is_tried_here() -> None:
    assert set(FIELDS) == set(Settings.model_fields)


@pytest.mark.parametrize("name", FIELDS)
def test_from_its_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, value, _ = FIELDS[name]
    monkeypatch.setenv(f"ATTENTION_{name.upper()}", text)
    assert getattr(Settings(), name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_from_an_argument_which_goes_before_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, value, wrong = FIELDS[name]
    monkeypatch.setenv(f"ATTENTION_{name.upper()}", wrong or "something else")
    assert getattr(Settings(**{name: value}), name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ATTENTION_{name.upper()}", "")
    assert getattr(Settings(), name) == getattr(Settings(_env_prefix="NOT_SET_"), name)


@pytest.mark.parametrize("from_variable", [True, False], ids=["variable", "argument"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, from_variable: bool
) -> None:
    arguments: dict[str, Any] = {} if from_variable else {name: WRONG[name]}
    if from_variable:
        monkeypatch.setenv(f"ATTENTION_{name.upper()}", WRONG[name])
    with pytest.raises(ValidationError) as error:
        Settings(**arguments)
    assert [item["loc"] for item in error.value.errors()] == [(name,)]


def test_all_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wrong in WRONG.items():
        monkeypatch.setenv(f"ATTENTION_{name.upper()}", wrong)
    with pytest.raises(ValidationError) as error:
        Settings()
    assert {item["loc"][0] for item in error.value.errors()} == set(WRONG)


@pytest.mark.parametrize("delay", ["inf", "nan"])
def test_a_drain_delay_ends(monkeypatch: pytest.MonkeyPatch, delay: str) -> None:
    monkeypatch.setenv("ATTENTION_DRAIN_DELAY", delay)
    with pytest.raises(ValidationError, match="finite"):
        Settings()


def test_bytes_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_MEMORY_BUDGET_BYTES", "4g")  # as compose files have it
    with pytest.raises(ValidationError, match="'4g' is no number of bytes, such as 4294967296"):
        Settings()


def test_warn_is_warning() -> None:
    given: dict[str, Any] = {"log_level": "warn"}
    assert Settings(**given).log_level == "warning"


def test_variables_that_are_no_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATTENTION_PORT", "attention_host", "ATTENTION_API_KEY", "ATTENTION_IMAGE"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == []
    monkeypatch.setenv("ATTENTION_MAX_TIMOUT", "5")
    monkeypatch.setenv("ATTENTION_SERVICE_HOST", "10.0.0.1")
    typo, foreign = unknown_variables()
    assert typo.startswith("ATTENTION_MAX_TIMOUT is no setting and changes nothing; ")
    assert typo.endswith("; did you mean ATTENTION_MAX_TIMEOUT?")
    assert foreign == "ATTENTION_SERVICE_HOST is no setting and changes nothing"


def test_all_are_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| `ATT")]
    documented = {cells[0].strip("`").removeprefix("ATTENTION_").lower(): cells for cells in rows}
    assert list(documented) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        _, option, default, meaning = (cell.strip() for cell in documented[name])
        assert option in {"", f"`--{name.replace('_', '-')}`"}
        is_told = field.default_factory is None and field.default not in {None, ""}
        assert default == (f"`{str(field.default).lower()}`" if is_told else "")
        assert meaning == str(field.description).replace("``", "`").replace("\n", " ")


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="prot"):
        Settings(prot=9000)  # type: ignore[call-arg]


def test_nothing_changes_afterwards() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(FIELDS)), 9000)


def test_a_module_folder_that_cannot_be_listed_says_why() -> None:
    with pytest.raises(ValidationError, match=r"test_settings\.py cannot be listed: Not a dir"):
        Settings(modules=Path(__file__))


@pytest.mark.parametrize("text", ["attention", "/attention", "/attention/", "attention//"])
def test_a_root_path_begins_with_a_slash_and_ends_without(text: str) -> None:
    assert Settings(root_path=text).root_path == "/attention"
    assert Settings(root_path="/").root_path == ""


def test_modules_are_in_the_users_cache_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Settings().modules == tmp_path / "cache" / "attention-service" / "modules"
    # The specification of the base directories: relative paths are invalid, and ignored.
    for unusable in ("", "cache", "./cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        expected = tmp_path / "home" / ".cache" / "attention-service" / "modules"
        assert default_modules() == Settings().modules == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Settings().modules == expected


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        str(path.relative_to(SERVICE))
        for path in SERVICE.rglob("*.py")
        if uses_the_environment(ast.parse(path.read_text()))
    }
    # The package itself only sets two variables, for ONNX Runtime and for numpy, and the
    # supervisor one, for the metrics of its workers.
    assert readers == {"settings.py", "__init__.py", "api/supervisor.py"}
    package = (SERVICE / "__init__.py").read_text()
    assert package.count("environ") == package.count("environ.setdefault(") == 2
    supervisor = (SERVICE / "api" / "supervisor.py").read_text()
    assert supervisor.count("environ") == supervisor.count('environ["PROMETHEUS_MULTIPROC_DIR"] =')


ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "envvar"}


def uses_the_environment(module: ast.Module) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT)
        or (isinstance(node, ast.Name) and node.id in ENVIRONMENT)
        or (isinstance(node, ast.alias) and node.name in ENVIRONMENT)
        or (isinstance(node, ast.keyword) and node.arg in ENVIRONMENT)
        for node in ast.walk(module)
    )


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.environ['A']",
        "import os; os.getenv('A')",
        "from os import environ as e; e['A']",
        "option(envvar='A')",
    ],
)
def test_reading_the_environment_would_be_seen(code: str) -> None:
    assert uses_the_environment(ast.parse(code))


def test_workers_divide_the_settings() -> None:
    whole = Settings(
        workers=4, threads=10, max_running=2, max_waiting=100, memory_budget_bytes=2**30
    )
    one = whole.of_a_worker()
    assert (one.threads, one.max_running, one.max_waiting) == (2, 1, 25)
    assert one.memory_budget_bytes == 2**28
    assert one.workers == 4
    assert one.max_body_bytes == whole.max_body_bytes
    assert Settings(workers=3, max_waiting=0).of_a_worker().max_waiting == 0
    assert (
        Settings(workers=64, memory_budget_bytes=2**20).of_a_worker().memory_budget_bytes == 2**20
    )
