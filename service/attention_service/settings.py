"""The settings of the service: one frozen object, the only reader of the environment."""

from __future__ import annotations

import difflib
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from attention_service import resources
from attention_service.logs import LogFormat

MEBIBYTE = 2**20
PREFIX = "ATTENTION_"
# What begins like a setting and is another's: of the client, the examples, deploy/compose.
_OF_OTHERS = {"ATTENTION_API_KEY", "ATTENTION_URL", "ATTENTION_IMAGE"}
# What workers divide → the least that each has.
_DIVIDED = {"threads": 1, "max_running": 1, "max_waiting": 1, "memory_budget_bytes": MEBIBYTE}
ProviderName: TypeAlias = Literal[
    "auto", "cpu", "cuda", "tensorrt", "rocm", "migraphx", "openvino", "dnnl", "coreml", "directml"
]


def _check_digits(value: object) -> object:
    if isinstance(value, str) and not value.strip().lstrip("-").isdecimal():
        raise ValueError(f"{value!r} is no number of bytes, such as 4294967296 for 4 GiB")
    return value


Bytes: TypeAlias = Annotated[int, BeforeValidator(_check_digits)]


def variable(name: str) -> str:
    """The variable that a setting is read from."""
    return PREFIX + name.upper()


def unknown_variables() -> list[str]:
    """What is wrong with each variable that looks like a setting and is none."""
    known = {variable(name) for name in Settings.model_fields}
    found = {name for name in os.environ if name.upper().startswith(PREFIX)}
    messages = []
    for name in sorted(name for name in found if name.upper() not in known | _OF_OTHERS):
        near = difflib.get_close_matches(name.upper(), known, 1, cutoff=0.8)
        cure = f"; did you mean {near[0]}?" if near else ""
        messages.append(f"{name} is no setting and changes nothing{cure}")
    return messages


def default_modules() -> Path:
    """The module folder in the user's cache, as the XDG base directories have it.

    A relative XDG_CACHE_HOME is to be ignored
    (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = cache if cache.is_absolute() else Path.home() / ".cache"
    return base / "attention-service" / "modules"


class Settings(BaseSettings):
    """What the service is started with.

    Each field is also read from a variable: ``port`` from ``ATTENTION_PORT``. An empty
    variable is as good as none, since compose files and the like cannot leave one out.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,  # for --help; docs/settings.md has the same words
    )

    host: str = "127.0.0.1"
    """Address to listen on. Another than loopback is warned of while there are no keys."""

    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    modules: Path = Field(default_factory=default_modules)
    """Folder of the learned modules, one folder each; by default
    ``attention-service/modules`` in ``~/.cache``."""

    modules_poll: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """Seconds between two looks at the folder for what has changed in it; 0 never looks again."""

    text_module: str | None = None
    """Text module of calls that name none; by default the only one there is."""

    provider: ProviderName = "auto"
    """Execution provider of ONNX Runtime: ``cpu``, ``cuda``, ``tensorrt``, ``rocm``, ``migraphx``,
    ``openvino``, ``dnnl``, ``coreml``, ``directml``; ``auto`` takes the first that starts of
    ``cuda``, ``rocm``, ``migraphx``, ``directml``, ``coreml``, ``cpu``."""

    workers: int = Field(default=1, ge=1, le=64)
    """Processes that serve; threads, places, queue and memory are divided among them."""

    threads: int = Field(default_factory=resources.cpu_count, ge=1)
    """Intra-op threads of a session; by default what the cgroup's cpu.max allows."""

    root_path: str = ""
    """Path prefix that a proxy takes off before it forwards."""

    trusted_proxies: str = ""
    """Addresses and networks, with commas between them, of proxies whose ``X-Forwarded-For`` says
    who calls; of anybody else it is not believed."""

    max_body_bytes: Bytes = Field(default=256 * MEBIBYTE, ge=1024)
    """Largest request body, after decompression too."""

    max_answer_bytes: Bytes = Field(default=256 * MEBIBYTE, ge=1024)
    """Largest answer; its upper bound is known before anything is computed."""

    memory_budget_bytes: Bytes = Field(
        default_factory=lambda: resources.memory_bytes() // 2, ge=MEBIBYTE
    )
    """Memory that calls may take together; by default half of what the cgroup allows."""

    batch_bytes: Bytes = Field(default=6 * MEBIBYTE, ge=0)
    """Scores, padding included, of calls that are computed together; 0 computes each by itself."""

    max_running: int = Field(default=2, ge=1)
    """Large calls that compute at once; small ones have places of their own."""

    max_waiting: int = Field(default=256, ge=0)
    """Calls that may wait for their turn, of small ones, of small ones that can be computed
    together and of large ones each, of one caller half as many; one more is answered 429."""

    max_wait: float = Field(default=1.0, ge=0)
    """Seconds that a call may be expected to wait; past it 429. Calls that take long may wait
    three times as long as one takes."""

    max_timeout: float = Field(default=240.0, gt=0, allow_inf_nan=False)
    """Seconds that a call may take at most, whatever its caller allows it."""

    body_timeout: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds that a body may take to come, and one more for every 64 KiB of it."""

    drain_delay: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """Seconds between SIGTERM, when readiness ends, and the end of listening."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What the log holds: ``debug``, ``info``, ``warning`` or ``error``; at ``info``, a line for
    each call."""

    traces: bool = False
    """Whether spans of each call are sent to an OpenTelemetry collector. Needs the extra ``otel``;
    where the collector is, its SDK reads from variables of its own (``OTEL_…``)."""

    log_format: LogFormat = "text"
    """Lines for people, or ``json``: an object a line."""

    api_keys_file: Path | None = None
    """File of the keys of which callers must send one; unset, anybody may call."""

    def in_effect(self) -> str:
        """All of them, for the log."""
        return " ".join(f"{name}={value}" for name, value in self)

    def of_a_worker(self) -> Settings:
        """The settings of one of several workers: its share of what is divided."""
        shares = {
            name: max(least, getattr(self, name) // self.workers)
            for name, least in _DIVIDED.items()
            if getattr(self, name) >= least  # a queue of none is one
        }
        return self.model_copy(update=shares)

    @field_validator("modules")
    @classmethod
    def _can_be_listed(cls, value: Path) -> Path:
        try:
            if value.exists():
                next(value.iterdir(), None)
        except OSError as error:
            raise ValueError(f"{value} cannot be listed: {error.strerror}") from None
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _as_other_programs_call_it(cls, value: object) -> object:
        return "warning" if value == "warn" else value

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str) -> str:
        items = [item.strip() for item in value.split(",") if item.strip()]
        for item in items:
            ip_network(item)  # its error names the item
        return ",".join(items)

    @field_validator("root_path")
    @classmethod
    def _slash_at_the_front_only(cls, value: str) -> str:
        path = value.strip("/")
        return f"/{path}" if path else ""
