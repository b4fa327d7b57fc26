"""The client for code that waits for its answers."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Never, Self, TypeVar, Unpack, overload

import httpx
import numpy.typing as npt

from attention_client import _calls, _fields
from attention_client._calls import Heads, Indices, Texts
from attention_client._messages import Answer, Received
from attention_client._protocol import Attempt, Call, Done, Exchange, Outcome
from attention_client._settings import Settings
from attention_client._shards import check_clients, divide
from attention_client._traces import call_span, shards_span
from attention_client._transport import arguments, errors_mapped, small_content
from attention_client._wide import wide_client
from attention_client.errors import AttentionError
from attention_client.options import AttentionOptions, ReturnSpec, TextReturnSpec
from attention_client.results import AttentionResult
from attention_client.text_parts import Unit
from attention_client.text_results import TextAttention
from attention_wire.answers import ModuleInfo, ModuleList, ServiceInfo

T = TypeVar("T")


class AttentionClient:
    """A client of the attention service. Threads may share one.

    A call that fails in a way that passes (no connection, 408, 429, 502, 503, 504) is
    repeated, after a growing delay, or the one that the service asks for.

    Args:
        base_url: address of the service, with any path prefix; by default ``ATTENTION_URL``
            of the environment, else ``http://127.0.0.1:8080``.
        api_key: sent as a bearer token; by default ``ATTENTION_API_KEY``, else none.
        timeout: seconds that a call may take in all, its repetitions included; the service
            is told what is left of them. ``math.inf`` for no end.
        max_retries: how often a failed attempt is repeated. One that a full queue turned away
            has not failed: unless this is 0, it is repeated until the timeout.
        http_client: an ``httpx.Client`` to send through, for proxies, certificates or
            limits of your own. Its timeouts and base URL are not used, and it stays open
            when this client is closed.

    Raises:
        ConfigurationError: the address, the key or a number cannot be used.

    Example:
        >>> with AttentionClient() as client:
        ...     result = client.attention([[1.0, 0.0]], [[1.0, 0.0]], [[5.0]])
        >>> result.output
        array([[5.]], dtype=float32)
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        http_client: httpx.Client | None = None,
    ) -> None:
        self._settings = Settings.resolve(base_url, api_key, timeout, max_retries)
        self._owns_http = http_client is None
        self._http = http_client or wide_client(is_https=self._settings.is_https)

    def attention(
        self,
        query: npt.ArrayLike,
        key: npt.ArrayLike,
        value: npt.ArrayLike,
        *,
        shards: Sequence[Self] | None = None,
        timeout: float | None = None,
        **options: Unpack[AttentionOptions],
    ) -> AttentionResult:
        """Scaled dot-product attention over tensors: softmax(scale·QKᵀ + mask)·V.

        Tensors are anything that numpy makes arrays of: float16, bfloat16 (of ``ml_dtypes`` or
        PyTorch), float32 or float64, of one rank and one dtype. Lists and integers become
        float32.

        Args:
            query: [B, Hq, L, D]; [B, L, Hq·D] with the numbers of heads; or [L, D].
            key: [B, Hkv, S, D], [B, S, Hkv·D] or [S, D]. Query head h reads key head
                h // (Hq / Hkv).
            value: [B, Hkv, S, Dv], [B, S, Hkv·Dv] or [S, Dv].
            shards: clients of the services to divide the keys and values among, in contiguous
                parts. They are called at the same time, and their results merged into the
                exact one: this client does nothing itself, unless it is one of them. Only
                ``output``, ``lse`` and ``entropy`` are merged; the first two are the default.
            timeout: seconds for this call, in place of the client's, or of each shard's.
            options: the keyword arguments that :class:`attention_client.AttentionOptions`
                describes, all optional: ``attn_mask``, ``is_causal``, ``scale``, ``softcap``,
                ``left_window_size``, ``right_window_size``, ``q_num_heads``, ``kv_num_heads``,
                ``nonpad_kv_seqlen``, ``softmax_precision``, ``past_key``, ``past_value``,
                ``sinks``, ``alibi_slopes``, ``query_document_ids``, ``key_document_ids``,
                ``query_offset``, ``key_offset``, and ``return_``, what to compute.

        Returns:
            What ``return_`` asks for, by default ``output`` in the query's rank and dtype, and
            ``weights`` [B, Hq, L, T] or [L, T], where T counts the past's keys too.

        Raises:
            TypeError, ValueError: an argument is no tensor that could be sent, or cannot be
                divided among shards, or a shard is no client.
            InvalidRequestError: shapes or dtypes do not fit; it names the fields.
            AttentionError: whatever else goes wrong; see ``attention_client.errors``.

        Example:
            >>> import numpy as np
            >>> query = np.zeros((1, 8, 5, 64), np.float16)
            >>> key = value = np.ones((1, 2, 7, 64), np.float16)  # grouped: 4 queries a key
            >>> result = client.attention(query, key, value, is_causal=True)
            >>> result.output.shape, result.weights.shape, result.weights.dtype
            ((1, 8, 5, 64), (1, 8, 5, 7), dtype('float16'))
            >>> result.weights[0, 0, 1]
            array([0.5, 0.5, 0. , 0. , 0. , 0. , 0. ], dtype=float16)

            The two largest weights of each row of one head, and what is left of the row:

            >>> asked = {"weights": {"heads": [0], "top_k": 2}}
            >>> client.attention(query, key, value, return_=asked).top_k
            TopK(indices=int32[1, 1, 5, 2], values=float16[1, 1, 5, 2], rest=float32[1, 1, 5])

            The keys on two services, here the same one twice:

            >>> result = client.attention(query, key, value, is_causal=True, shards=[client] * 2)
            >>> result
            AttentionResult(output=float16[1, 8, 5, 64], lse=float32[1, 8, 5], provider=...)
        """
        fields = _fields.of_attention(query, key, value, options)
        if shards is None:
            return self._run(_calls.attention(fields, timeout))
        check_clients(shards, AttentionClient)
        sharded = divide(fields, len(shards))
        work = [
            (shard, [_calls.attention(each, timeout) for each in parts])
            for shard, parts in zip(shards, sharded.fields, strict=False)
        ]
        with shards_span(len(work)), ThreadPoolExecutor(len(work)) as pool:
            # Each thread in a copy of this one's context, which knows the current span.
            tasks = [
                pool.submit(copy_context().run, shard._run_all, calls) for shard, calls in work
            ]
            return sharded.merged([task.result() for task in tasks])

    def module_attention(
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
        """Attention through a learned multi-head module of the service.

        Args:
            name: the module; see :meth:`modules`.
            query: [B, L, E], of a float dtype; E is the module's ``embed_dim``.
            key: [B, S, key_dim]; the query by default.
            value: [B, S, value_dim]; the key by default.
            attn_mask: as in :meth:`attention`.
            is_causal: query i sees the keys j ≤ i.
            scale: factor on the scores; 1/√D by default.
            return_: what to compute, as in :meth:`attention`.
            timeout: seconds for this call, in place of the client's.
            unknown: none; a name that is misspelt is refused with the one that was meant.

        Returns:
            ``output`` [B, L, E], ``weights`` [B, H, L, S], both in the query's dtype.

        Raises:
            NotFoundError: there is no such module.
            InvalidRequestError: shapes do not fit, or the module is of another kind.
            AttentionError: whatever else goes wrong; see ``attention_client.errors``.

        Example:
            >>> import numpy as np
            >>> module = client.module("mha")
            >>> query = np.ones((1, 3, module.embed_dim), np.float32)
            >>> result = client.module_attention("mha", query)
            >>> result.output.shape == query.shape, result.module
            (True, 'mha')
            >>> result.weights.shape == (1, module.num_heads, 3, 3)
            True
        """
        return self._run(
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
    def text_attention(
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
    def text_attention(
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

    def text_attention(
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
        """What a trained text model attends to in a text.

        Args:
            text: one text, or a list of them, which is computed as a batch.
            text_pair: the second text of each pair, in the form of ``text``.
            module: a text module; by default the service's, or its only one.
            layers: the layers to return, from 0, in this order.
            heads: the heads to return of each layer, from 0, in this order.
            unit: what rows and columns are: tokens, or words.
            ablate: the layer and head of each head to switch off: its context is zeroed.
                What is returned is what the model then computes, and ``change`` says how its
                output differs.
            truncate: cut a text that is too long rather than refuse it.
            return_: what to compute: ``output``, ``weights`` (both by default; a selection
                may have ``queries``, ``reduce``, ``top_k`` and ``value_weighted``),
                ``entropy``, ``statistics``, ``classes``, ``rollout``, ``flow``, ``blocks``
                and ``inputs``; see :class:`attention_client.TextReturn`.
            timeout: seconds for this call, in place of the client's.
            unknown: none; a name that is misspelt is refused with the one that was meant.

        Returns:
            One result for a string, a list of them for a list: tokens, by default ``output``
            [L, E] and ``weights`` [layers, heads, L, L], float32. Printing one draws a map.

        Raises:
            NotFoundError: the service has no text module, or none of that name.
            InvalidRequestError: a text is too long, or an index is out of range.
            AttentionError: whatever else goes wrong; see ``attention_client.errors``.

        Example:
            >>> result = client.text_attention("The cat sat.", layers=[0, 5])
            >>> result.weights.shape
            (2, 12, 6, 6)
            >>> print(result)
            mean of 2 layers, mean of 12 heads; rows: queries, columns: keys
            ...
            >>> [len(each.tokens) for each in client.text_attention(["a cat", "a black cat"])]
            [4, 5]

            Numbers for each head, and nothing else:

            >>> asked = {"output": False, "weights": False, "entropy": True, "classes": True}
            >>> result = client.text_attention("The cat sat.", return_=asked)
            >>> result
            TextAttention(tokens=6, entropy=float32[6, 12, 6], classes, module=...)

            How the output changes where two heads are switched off:

            >>> client.text_attention("The cat sat.", ablate=[(0, 3), (5, 7)]).change.shape
            (6, 384)
        """
        return self._run(
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

    def modules(self) -> ModuleList:
        """The learned modules that the service has, and those that it refused.

        Raises:
            AttentionError: whatever goes wrong; see ``attention_client.errors``.

        Example:
            >>> [module.name for module in client.modules().modules if module.kind == "text"]
            ['all-MiniLM-L6-v2']
        """
        return self._run(_calls.modules())

    def module(self, name: str) -> ModuleInfo:
        """One module's kind, sizes, licence and source.

        Raises:
            NotFoundError: there is no such module.
            AttentionError: whatever else goes wrong; see ``attention_client.errors``.

        Example:
            >>> module = client.module("all-MiniLM-L6-v2")
            >>> module.kind, module.num_layers, module.num_heads
            ('text', 6, 12)
        """
        return self._run(_calls.module(name))

    def info(self) -> ServiceInfo:
        """The service's version, its execution provider and its limits.

        Raises:
            AttentionError: whatever goes wrong; see ``attention_client.errors``.

        Example:
            >>> client.info().provider
            '...ExecutionProvider'
        """
        return self._run(_calls.info())

    def ready(self) -> bool:
        """Whether the service takes calls now; false too if nothing answers. Never repeated.

        Raises:
            ApiError: something answers that has no such path: not the service.
            InvalidAnswerError: likewise.

        Example:
            >>> client.ready()
            True
        """
        return self._run(_calls.ready())

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """The same client with another patience; the connections are shared, and stay this one's.

        Raises:
            ConfigurationError: a number is out of its range.

        Example:
            >>> patient = client.with_options(timeout=600, max_retries=5)
            >>> patient.ready()
            True
        """
        other = copy.copy(self)
        other._settings = self._settings.with_options(timeout, max_retries)
        other._owns_http = False
        return other

    def close(self) -> None:
        """Close the connections, unless they belong to somebody else's ``http_client``.

        Example:
            >>> client = AttentionClient()
            >>> client.close()
        """
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.base_url!r})"

    def _run(self, call: Call[T]) -> T:
        return self._drive(Exchange(call, self._settings.policy))

    def _run_all(self, calls: Sequence[Call[T]]) -> list[T]:
        """A shard's part of a call, under one deadline."""
        exchanges = [Exchange(call, self._settings.policy) for call in calls]
        try:
            return [self._drive(exchange) for exchange in exchanges]
        except AttentionError as error:
            error.add_note(f"(from the shard {self!r}, which has a part of the keys)")
            raise

    def _drive(self, exchange: Exchange[T]) -> T:
        with call_span(exchange.request, self._settings.base_url) as watch:
            while True:
                outcome = self._send(exchange.attempt())
                watch(outcome)
                verdict = exchange.judge(outcome)
                if isinstance(verdict, Done):
                    return verdict.value
                time.sleep(verdict.seconds)

    def _send(self, attempt: Attempt) -> Outcome:
        content = small_content(attempt)
        try:
            with (
                errors_mapped(self._settings, attempt),
                self._http.stream(
                    **arguments(self._settings, attempt),
                    content=attempt.pieces() if content is None else content,
                ) as response,
            ):
                received = Received(response.headers)
                for chunk in response.iter_bytes():
                    attempt.check()
                    received.add(chunk)
                return Answer(response.status_code, response.headers, received.body())
        except AttentionError as error:
            return error
