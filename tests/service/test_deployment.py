"""The files of deploy/compose fit each other and the service; tests/system runs them."""

from __future__ import annotations

import ipaddress
import json
import re

import httpx
import yaml

from attention_service.api.problems import STATUS
from attention_service.settings import Settings
from attention_wire.bodies import PROBLEM
from attention_wire.problems import TYPE_PREFIX, Code, ProblemDetails
from tests.conftest import ROOT

COMPOSE = ROOT / "deploy/compose"
CONFIGURATION = (COMPOSE / "haproxy.cfg").read_text()
REPLICAS = ("attention-1", "attention-2")


def test_haproxys_configuration_fits_the_compose_file() -> None:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    proxy, prometheus = services.pop("haproxy"), services.pop("prometheus")
    servers = dict(re.findall(r"^ +server (\S+) (\S+)$", CONFIGURATION, re.MULTILINE))
    assert servers == {name: f"{name}:8080" for name in services}
    assert tuple(services) == tuple(proxy["depends_on"]) == REPLICAS
    assert proxy["ports"] == ["127.0.0.1:8080:8080"]
    assert proxy["volumes"] == ["./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"]
    for service in [proxy, prometheus, *services.values()]:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_replicas_are_checked_as_their_image_is_and_believe_the_proxy_of_their_network() -> None:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    (check,) = re.findall(
        r"^HEALTHCHECK .*\\\n +CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    for name in REPLICAS:
        assert services[name]["healthcheck"]["test"] == ["CMD", *json.loads(check)]
        variables = {key.lower(): value for key, value in services[name]["environment"].items()}
        trusted = Settings(trusted_proxies=variables["attention_trusted_proxies"]).trusted_proxies
        networks = [ipaddress.ip_network(network) for network in trusted.split(",")]
        assert all(network.is_private for network in networks)


def test_each_replica_and_the_proxy_are_scraped() -> None:
    prometheus = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())
    targets = {
        job["job_name"]: [target for one in job["static_configs"] for target in one["targets"]]
        for job in prometheus["scrape_configs"]
    }
    (metrics_port,) = re.findall(r"^frontend metrics\n +bind :(\d+)$", CONFIGURATION, re.MULTILINE)
    assert targets == {
        "attention": [f"{name}:8080" for name in REPLICAS],
        "haproxy": [f"haproxy:{metrics_port}"],
    }
    assert all((COMPOSE / file).is_file() for file in prometheus["rule_files"])


def test_what_haproxy_answers_itself_has_the_form_of_the_services_errors() -> None:
    answers = re.findall(
        r"http-error status (\d+) content-type (\S+) string '(.+?)'", CONFIGURATION
    )
    assert [int(status) for status, *_ in answers] == [404, 408, 502, 503, 504]
    for status, media_type, body in answers:
        assert media_type == PROBLEM
        problem = ProblemDetails.model_validate_json(body)
        assert problem.status == int(status)
        if problem.status == httpx.codes.BAD_GATEWAY:  # which the service never sends
            assert problem.type == "about:blank"
        else:
            code = Code(problem.code)
            assert problem.type == TYPE_PREFIX + code
            assert problem.status == STATUS[code]
