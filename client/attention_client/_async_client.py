"""The client for code that runs on asyncio."""

# A timeout of ours spans repetitions; `asyncio.timeout` around a call works as well.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Never, Self, TypeVar, Unpack, overload

import httpx
import numpy.typing as npt

from attention_client import _calls, _fields
from attention_client._calls import Heads, Indices, Texts
from attention_client._messages import Answer
from attention_client._protocol import Attempt, Call, Done, Exchange, Outcome
from attention_client._settings import Settings
from attention_client._shards import check_clients, divide
from attention_client._traces import call_span, shards_span
from attention_client._transport import arguments, errors_mapped, small_content
from attention_client.errors import AttentionError
from attention_client.options import AttentionOptions, ReturnSpec, TextReturnSpec
from attention_client.results import AttentionResult
from attention_client.text_parts import Unit
from attention_client.text_results import TextAttention
from attention_wire.answers import ModuleInfo, ModuleList, ServiceInfo

T = TypeVar("T")


class AsyncAttentionClient:
    """A client of the attention service for asyncio. Tasks of one event loop may share one.

    All is as in :class:`attention_client.AttentionClient`, with ``await``.

    Args:
        base_url: address of the service, with any path prefix; by default ``ATTENTION_URL``
            of the environment, else ``http://127.0.0.1:8080``.
        api_key: sent as a bearer token; by default ``ATTENTION_API_KEY``, else none.
        timeout: seconds that a call may take in all, its repetitions included; the service
            is told what is left of them. ``math.inf`` for no end.
        max_retries: how often a failed attempt is repeated. One that a full queue turned away
            has not failed: unless this is 0, it is repeated until the timeout.
        http_client: an ``httpx.AsyncClient`` to send through. Its timeouts and base URL are
            not used, and it stays open when this client is closed.

    Raises:
        ConfigurationError: the address, the key or a number cannot be used.

    Example:
        >>> async def main():
        ...     async with AsyncAttentionClient() as client:
        ...         calls = [client.text_attention(text) for text in ("a cat", "a black cat")]
        ...         return [len(result.tokens) for result in await asyncio.gather(*calls)]
        >>> asyncio.run(main())
        [4, 5]
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._settings = Settings.resolve(base_url, api_key, timeout, max_retries)
        self._owns_http = http_client is None
        self._http = http_client or httpx.AsyncClient()

    async def attention(
        self,
        query: npt.ArrayLike,
        key: npt.ArrayLike,
        value: npt.ArrayLike,
        *,
        shards: Sequence[Self] | None = None,
        timeout: float | None = None,
        **options: Unpack[AttentionOptions],
    ) -> AttentionResult:
        """Scaled dot-product attention; see :meth:`AttentionClient.attention`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.attention([[1.0]], [[1.0]], [[5.0]], softcap=30.0)
            >>> asyncio.run(main()).output
            array([[5.]], dtype=float32)
        """
        fields = _fields.of_attention(query, key, value, options)
        if shards is None:
            return await self._run(_calls.attention(fields, timeout))
        check_clients(shards, AsyncAttentionClient)
        sharded = divide(fields, len(shards))
        work = [
            (shard, [_calls.attention(each, timeout) for each in parts])
            for shard, parts in zip(shards, sharded.fields, strict=False)
        ]
        with shards_span(len(work)):
            tasks = [asyncio.create_task(shard._run_all(calls)) for shard, calls in work]
            try:
                return sharded.merged(await asyncio.gather(*tasks))
            finally:
                # Where one failed, or the caller was cancelled, the others end with it.
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def module_attention(
        self,
        name: str,
        query: npt.ArrayLike,
        key: npt.ArrayLike | None = None,
        value: npt.ArrayLike | None = None,
        *,
        attn_mask: npt.ArrayLike | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        return_: ReturnSpec | None = None,
        timeout: float | None = None,
        **unknown: Never,
    ) -> AttentionResult:
        """Attention through a learned module; see :meth:`AttentionClient.module_attention`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         size = (await client.module("mha")).embed_dim
            ...         return await client.module_attention("mha", [[[1.0] * size] * 3])
            >>> asyncio.run(main()).weights.shape[-2:]
            (3, 3)
        """
        return await self._run(
            _calls.module_attention(
                name,
                query,
                key,
                value,
                attn_mask=attn_mask,
                is_causal=is_causal,
                scale=scale,
                return_=return_,
                timeout=timeout,
                **unknown,
            )
        )

    @overload
    async def text_attention(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        module: str | None = None,
        layers: Indices = "all",
        heads: Indices = "all",
        unit: Unit = "token",
        ablate: Heads | None = None,
        truncate: bool = False,
        return_: TextReturnSpec | None = None,
        timeout: float | None = None,
    ) -> TextAttention: ...

    @overload
    async def text_attention(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        *,
        module: str | None = None,
        layers: Indices = "all",
        heads: Indices = "all",
        unit: Unit = "token",
        ablate: Heads | None = None,
        truncate: bool = False,
        return_: TextReturnSpec | None = None,
        timeout: float | None = None,
    ) -> list[TextAttention]: ...

    async def text_attention(
        self,
        text: str | Texts,
        text_pair: str | Texts | None = None,
        *,
        module: str | None = None,
        layers: Indices = "all",
        heads: Indices = "all",
        unit: Unit = "token",
        ablate: Heads | None = None,
        truncate: bool = False,
        return_: TextReturnSpec | None = None,
        timeout: float | None = None,
        **unknown: Never,
    ) -> TextAttention | list[TextAttention]:
        """What a model attends to in a text; see :meth:`AttentionClient.text_attention`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.text_attention("The cat sat.", layers=[5])
            >>> asyncio.run(main()).weights.shape
            (1, 12, 6, 6)
        """
        return await self._run(
            _calls.text_attention(
                text,
                text_pair,
                module=module,
                layers=layers,
                heads=heads,
                unit=unit,
                ablate=ablate,
                truncate=truncate,
                return_=return_,
                timeout=timeout,
                **unknown,
            )
        )

    async def modules(self) -> ModuleList:
        """The learned modules; see :meth:`AttentionClient.modules`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.modules()
            >>> [module.name for module in asyncio.run(main()).modules if module.kind == "text"]
            ['all-MiniLM-L6-v2']
        """
        return await self._run(_calls.modules())

    async def module(self, name: str) -> ModuleInfo:
        """One module's facts; see :meth:`AttentionClient.module`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.module("mha")
            >>> asyncio.run(main()).kind
            'multi_head'
        """
        return await self._run(_calls.module(name))

    async def info(self) -> ServiceInfo:
        """The service's version, provider and limits; see :meth:`AttentionClient.info`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.info()
            >>> asyncio.run(main()).keys_required
            False
        """
        return await self._run(_calls.info())

    async def ready(self) -> bool:
        """Whether the service takes calls now; see :meth:`AttentionClient.ready`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.ready()
            >>> asyncio.run(main())
            True
        """
        return await self._run(_calls.ready())

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """The same client with another patience; see :meth:`AttentionClient.with_options`.

        Example:
            >>> async def main():
            ...     async with AsyncAttentionClient() as client:
            ...         return await client.with_options(max_retries=0).ready()
            >>> asyncio.run(main())
            True
        """
        other = copy.copy(self)
        other._settings = self._settings.with_options(timeout, max_retries)
        other._owns_http = False
        return other

    async def aclose(self) -> None:
        """Close the connections, unless they belong to somebody else's ``http_client``.

        Example:
            >>> async def main():
            ...     client = AsyncAttentionClient()
            ...     await client.aclose()
            >>> asyncio.run(main())
        """
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.base_url!r})"

    async def _run(self, call: Call[T]) -> T:
        return await self._drive(Exchange(call, self._settings.policy))

    async def _run_all(self, calls: Sequence[Call[T]]) -> list[T]:
        """A shard's part of a call, under one deadline."""
        exchanges = [Exchange(call, self._settings.policy) for call in calls]
        try:
            return [await self._drive(exchange) for exchange in exchanges]
        except AttentionError as error:
            error.add_note(f"(from the shard {self!r}, which has a part of the keys)")
            raise

    async def _drive(self, exchange: Exchange[T]) -> T:
        with call_span(exchange.request, self._settings.base_url) as watch:
            while True:
                outcome = await self._send(exchange.attempt())
                watch(outcome)
                verdict = exchange.judge(outcome)
                if isinstance(verdict, Done):
                    return verdict.value
                await asyncio.sleep(verdict.seconds)

    async def _send(self, attempt: Attempt) -> Outcome:
        left = attempt.left()
        try:
            async with asyncio.timeout(None if math.isinf(left) else left):
                return await self._exchange(attempt)
        except TimeoutError:
            return attempt.too_late()
        except AttentionError as error:
            return error

    async def _exchange(self, attempt: Attempt) -> Answer:
        content = small_content(attempt)
        with errors_mapped(self._settings, attempt):
            async with self._http.stream(
                **arguments(self._settings, attempt),
                content=_pieces(attempt) if content is None else content,
            ) as response:
                body = await response.aread()
        return Answer(response.status_code, response.headers, body)


async def _pieces(attempt: Attempt) -> AsyncIterator[bytes]:
    for piece in attempt.pieces():
        yield piece
