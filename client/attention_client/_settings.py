"""How a client is set up: arguments first, then the environment, then defaults."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from urllib.parse import urlsplit

from attention_client._protocol import Policy
from attention_client.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8080"
_AGENT = f"attention-client/{version('attention-service')}"
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Settings:
    """Where the service is, how to speak to it, and how patiently.

    Attributes:
        base_url: scheme, host and any path prefix, without a final slash.
        api_key: sent as a bearer token, if there is one.
        policy: how long and how often a call is tried.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    policy: Policy

    @classmethod
    def resolve(
        cls, base_url: str | None, api_key: str | None, timeout: float, max_retries: int
    ) -> Settings:
        """Settings of arguments, ``ATTENTION_URL`` and ``ATTENTION_API_KEY``.

        Raises:
            ConfigurationError: one of them cannot be used.
        """
        url = base_url or os.environ.get("ATTENTION_URL") or DEFAULT_URL
        key = api_key or os.environ.get("ATTENTION_API_KEY") or None
        if key is not None and not _KEY.fullmatch(key):
            raise ConfigurationError(
                "the API key holds white space or characters that are not ASCII, which no "
                "header can carry"
            )
        policy = Policy(check_timeout(timeout), _check_retries(max_retries))
        return cls(_check_url(url), key, policy)

    def with_options(self, timeout: float | None, max_retries: int | None) -> Settings:
        """The same settings with another patience."""
        policy = self.policy
        if timeout is not None:
            policy = replace(policy, timeout=check_timeout(timeout))
        if max_retries is not None:
            policy = replace(policy, max_retries=_check_retries(max_retries))
        return replace(self, policy=policy)

    @property
    def is_https(self) -> bool:
        """Whether the service is spoken to through TLS."""
        return self.base_url.startswith("https:")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"User-Agent": _AGENT}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


def check_timeout(timeout: float) -> float:
    """The timeout, once it is a positive number.

    Raises:
        ConfigurationError: it is not.
    """
    if not timeout > 0:
        raise ConfigurationError(f"timeout must be more than 0 seconds; got {timeout!r}")
    return float(timeout)


def _check_retries(max_retries: int) -> int:
    if max_retries < 0:
        raise ConfigurationError(f"max_retries must be 0 or more; got {max_retries!r}")
    return max_retries


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError as error:  # a port that is no number, an unfinished IPv6 address
        raise ConfigurationError(f"{url!r} is no address of a service: {error}") from None
    if not usable or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{url!r} is no address of a service; give one like {DEFAULT_URL}, with a path "
            "prefix if there is one, but no query"
        )
    return url.rstrip("/")
