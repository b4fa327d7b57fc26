"""Modules that change while the service runs: taken up, and no call is lost or mixed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from attention_service.modules.exporters import export
from attention_service.settings import Settings
from tests.conftest import RunningService
from tests.waiting import wait_until

POLL = 0.05
QUERY = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 3, 8)
NAME = "mine"


def expected(state: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What nn.MultiheadAttention(8, 2) gives for QUERY, in float64."""
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    rows = QUERY[0].astype(np.float64) @ wide["in_proj_weight"].T + wide["in_proj_bias"]
    query, key, value = (part.reshape(3, 2, 4).swapaxes(0, 1) for part in np.split(rows, 3, axis=1))
    scores = np.exp(query @ key.swapaxes(1, 2) / 2)
    heads = scores / scores.sum(axis=-1, keepdims=True) @ value
    output = heads.swapaxes(0, 1).reshape(3, 8) @ wide["out_proj.weight"].T + wide["out_proj.bias"]
    return np.asarray(output[None])


class Modules:
    """Two modules of the same name with other weights, and the folder that is served."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(7)
        self.served = folder / "served"
        self.outputs: dict[str, np.ndarray[Any, Any]] = {}
        self._made: dict[str, Path] = {}
        shapes = {
            "in_proj_weight": (24, 8),
            "in_proj_bias": (24,),
            "out_proj.weight": (8, 8),
            "out_proj.bias": (8,),
        }
        for which in ("one", "other"):
            state = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
            weights = folder / f"{which}.safetensors"
            save_file(state, weights)
            self._made[which] = export(str(weights), NAME, folder / which, num_heads=2)
            self.outputs[which] = expected(state)
        self.served.mkdir()
        self._count = 0

    def put(self, which: str) -> None:
        """As `export --force` does it: written aside, then two renames."""
        self._place(shutil.copytree(self._made[which], self._aside()))

    def put_broken(self) -> None:
        aside = shutil.copytree(self._made["one"], self._aside())
        with (aside / "model.onnx").open("ab") as model:
            model.write(b"more")
        self._place(aside)

    def begin_to_copy(self, which: str) -> Callable[[], None]:
        """As `cp -r` over the folder: the manifest first, the model's bytes by and by."""
        source, target = self._made[which], self.served / NAME
        shutil.copy(source / "module.json", target / "module.json")
        content = (source / "model.onnx").read_bytes()
        (target / "model.onnx").write_bytes(content[:1000])
        return lambda: (target / "model.onnx").write_bytes(content) and None

    def remove(self) -> None:
        shutil.rmtree(self.served / NAME)

    def _aside(self) -> Path:
        self._count += 1
        return self.served / f".aside{self._count}"

    def _place(self, aside: Path) -> None:
        target = self.served / NAME
        if target.exists():
            old = self._aside()
            target.rename(old)
            time.sleep(POLL / 2)  # somebody looks right now
            aside.rename(target)
            shutil.rmtree(old)
        else:
            aside.rename(target)


@pytest.fixture
def folder(tmp_path: Path) -> Modules:
    return Modules(tmp_path)


@pytest.fixture
def http(
    folder: Modules, start_service: Callable[[Settings], RunningService]
) -> Iterator[httpx.Client]:
    folder.put("one")
    settings = Settings(modules=folder.served, provider="cpu", modules_poll=POLL)
    service = start_service(settings)
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client
    service.stop()


def call(http: httpx.Client) -> httpx.Response:
    return http.post(f"/v1/modules/{NAME}/attention", json={"query": QUERY.tolist()})


def which(folder: Modules, answer: httpx.Response) -> str:
    """Whose answer it is: wholly the one's or wholly the other's."""
    assert answer.status_code == 200, answer.text
    (found,) = (
        name
        for name, output in folder.outputs.items()
        if np.allclose(answer.json()["output"], output, atol=1e-5)
    )
    return found


def refused(http: httpx.Client) -> dict[str, str]:
    return {item["name"]: item["reason"] for item in http.get("/v1/modules").json()["refused"]}


def test_calls_go_on_while_a_module_is_replaced_again_and_again(
    folder: Modules, http: httpx.Client
) -> None:
    stop, seen, failures = threading.Event(), set[str](), list[BaseException]()

    def keep_calling() -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as own:
            while not stop.is_set():
                try:
                    seen.add(which(folder, call(own)))
                except BaseException as error:  # noqa: BLE001  told below
                    failures.append(error)
                    return

    callers = [threading.Thread(target=keep_calling) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(4):
            folder.put("other")
            wait_until(lambda: which(folder, call(http)) == "other")
            folder.put_broken()
            wait_until(lambda: NAME in refused(http))
            assert which(folder, call(http)) == "other"
            folder.put("one")
            wait_until(lambda: which(folder, call(http)) == "one")
            assert refused(http) == {}
    finally:
        stop.set()
        for caller in callers:
            caller.join(30)
    assert failures == []
    assert seen == {"one", "other"}


def test_one_that_is_still_being_copied_is_refused_until_it_is_whole(
    folder: Modules, http: httpx.Client
) -> None:
    finish = folder.begin_to_copy("other")
    wait_until(lambda: "does not have the checksum" in refused(http).get(NAME, ""))
    assert which(folder, call(http)) == "one"
    finish()
    wait_until(lambda: which(folder, call(http)) == "other")
    assert refused(http) == {}


def test_one_that_is_removed_goes_and_one_that_is_added_comes(
    folder: Modules, http: httpx.Client
) -> None:
    before = http.get(f"/v1/modules/{NAME}").json()["sha256"]
    folder.remove()
    wait_until(lambda: call(http).status_code == 404)
    assert http.get("/v1/modules").json() == {"modules": [], "refused": []}
    folder.put("other")
    wait_until(lambda: call(http).status_code == 200)
    assert which(folder, call(http)) == "other"
    assert http.get(f"/v1/modules/{NAME}").json()["sha256"] != before


def test_the_whole_folder_is_swapped_by_a_link(
    tmp_path: Path, folder: Modules, start_service: Callable[[Settings], RunningService]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    service = start_service(Settings(modules=link, provider="cpu", modules_poll=POLL))
    with httpx.Client(base_url=service.url) as http:
        assert which(folder, call(http)) == "one"
        turned = tmp_path / "turned"
        turned.symlink_to(tmp_path / "other")
        turned.rename(link)
        wait_until(lambda: which(folder, call(http)) == "other")
    service.stop()
