"""The command `check`: known cases on the providers of this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Table

from attention_service.attention.check import ALLOWED, CheckResult, check_provider
from attention_service.attention.check import explain as explain_calls
from attention_service.attention.engine import PROVIDERS, Engine, EngineError
from attention_service.commands.common import ProviderOption, console, fail, settings_of

_CAPTION = (
    "largest error of output, weights, lse and entropy: absolute, and where numbers are above 1 in "
    "parts of the largest"
)
_KERNELS = "flash: fused, forms no scores; composed: product, softmax, product, takes every option"


def check(
    provider: ProviderOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how calls would be run, and what they cost")
    ] = False,
) -> None:
    """Compute known cases on this machine's providers and say how far each is from float64.

    Ends with 1 where one is further than its dtype allows.
    """
    settings = settings_of(provider=provider)
    try:
        engine = Engine(settings.provider, settings.threads)
        if explain:
            _print_plans(engine)
            return
    except EngineError as error:
        raise fail(error) from None
    here = [name for name, full in PROVIDERS.items() if full in engine.available]
    wrong = []
    for name in here if settings.provider == "auto" else [settings.provider]:
        try:
            chosen = Engine(name, settings.threads)
        except EngineError as error:
            typer.echo(f"Not verified: {error}")
            continue
        if not _is_right(chosen):
            wrong.append(name)
    missing = ", ".join(name for name in PROVIDERS if name not in here)
    typer.echo(f"Not verified, since not in the installed ONNX Runtime: {missing}.")
    if wrong:
        raise fail(f"wrong results on {', '.join(wrong)}")


def _is_right(engine: Engine) -> bool:
    """Check one provider, print what came out, and say whether all of it is right."""
    table = Table("options", *ALLOWED, caption=_CAPTION)
    results: dict[str, dict[str, CheckResult]] = {}
    for result in check_provider(engine):
        results.setdefault(result.options, {})[result.dtype] = result
    for options, of_dtypes in results.items():
        cells = [f"{r.error:.0e} {'ok' if r.ok else 'WRONG'}" for r in of_dtypes.values()]
        table.add_row(options, *cells)
    table.add_row("allowed", *(f"{allowed:.0e}" for allowed in ALLOWED.values()))
    typer.echo(f"{engine.provider}, {engine.threads} threads")
    console(sys.stdout).print(table)
    return all(r.ok for of_dtypes in results.values() for r in of_dtypes.values())


def _print_plans(engine: Engine) -> None:
    speed = engine.speed()
    typer.echo(
        f"{engine.provider}, {engine.threads} threads; one computes "
        f"{speed.flops / 1e9:.0f} GFLOP/s in tiles and moves {speed.bytes / 1e9:.0f} GB/s"
    )
    table = Table("call (float32, 8 heads of 64)", "kernel", "tiles", "heads × rows × keys",
                  "GFLOP", "MB moved", "ms", "peak MB", caption=_KERNELS)  # fmt: skip
    for name, plan in explain_calls(engine):
        for step in plan.steps:
            shape = " × ".join(map(str, step.tile_shape))
            figures = (f"{step.flops / 1e9:.2f}", f"{step.bytes / 1e6:.0f}")
            whole = (f"{plan.predicted_ms:.2f}", f"{plan.peak_bytes / 1e6:.1f}")
            table.add_row(name, step.kernel, str(step.tiles), shape, *figures, *whole)
    console(sys.stdout).print(table)
