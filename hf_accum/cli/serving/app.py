"""The addresses of a server: /predict, /health, /metrics."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hf_accum.cli.serving.batching import Batcher
from hf_accum.cli.serving.metrics import CONTENT_TYPE, Metrics
from hf_accum.cli.serving.rows import Refused, rows_of

_MOST_DRAINED = 64 * 2**20
"""Bytes of a request that is too large that are read and dropped, so that its client reads why."""


@dataclass(frozen=True)
class Limits:
    """Of requests."""

    max_request_bytes: int
    max_rows: int
    """Of one."""
    max_waiting: int
    """How many are read, wait or are computed at once."""
    timeout_seconds: float
    """From the first byte to the answer."""


def app_of(batcher: Batcher, limits: Limits, metrics: Metrics, about: Mapping[str, Any]) -> FastAPI:
    """The app; /health tells `about` it. No page of it loads anything from elsewhere."""
    app = FastAPI(title="hf-accum serve", docs_url=None, redoc_url=None, openapi_url=None)
    num_in_progress = 0

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return _json(error.status_code, {"error": str(error.detail)}, error.headers)

    @app.get("/health")
    async def health() -> Response:
        is_well = batcher.is_alive
        return _json(200 if is_well else 503, {"status": "ok" if is_well else "failed", **about})

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        return Response(metrics.text(num_in_progress), media_type=CONTENT_TYPE)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        nonlocal num_in_progress
        started = time.perf_counter()
        is_full = num_in_progress >= limits.max_waiting
        num_in_progress += 1
        try:
            if is_full:
                reason = f"{limits.max_waiting:,} requests are waited for already: ask again later"
                raise Refused(429, reason)
            status, answer = 200, await _answer(request, batcher, limits)
        except Refused as refused:
            status, answer = refused.status, refused.answer
        finally:
            num_in_progress -= 1
        response = _json(status, answer, {"retry-after": "1"} if status == 429 else None)
        metrics.answered(status, time.perf_counter() - started)
        return response

    return app


async def _answer(request: Request, batcher: Batcher, limits: Limits) -> dict[str, Any]:
    """What is told of a request's rows.

    Raises:
        Refused: for one that is not answered.
    """
    begun = False
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            body = await _body(request, limits.max_request_bytes)
            rows = rows_of(body, limits.max_rows)
            begun = True
            if not batcher.is_alive:
                raise Refused(503, "the server's worker has ended: start the server anew")
            return await _unless_gone(request, asyncio.wrap_future(batcher.ask(rows)))
    except TimeoutError:
        seconds = f"within the {limits.timeout_seconds:g} s of a request"
        if begun:
            raise Refused(504, f"was not computed {seconds}: ask for fewer rows, or later") from None
        raise Refused(408, f"did not come whole {seconds}") from None
    except ClientDisconnect:
        raise Refused(400, "the client went away") from None


async def _body(request: Request, most: int) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A page of another site, in a browser on this machine, may send anything else unasked.
        raise Refused(415, "has to be of content-type application/json")
    declared = request.headers.get("content-length", "0")
    reason = f"has more than the {most:,} bytes of a request: send fewer rows at once"
    if not declared.isdigit() or int(declared) > most + _MOST_DRAINED:
        raise Refused(413, reason)
    pieces, num_bytes = [], 0
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes <= most:
            pieces.append(piece)
        elif num_bytes > most + _MOST_DRAINED:
            break
    if num_bytes > most:
        raise Refused(413, reason)
    return b"".join(pieces)


async def _unless_gone(request: Request, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
    """The answer, which is not computed for a client that has gone away."""
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


def _json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII: what a message quotes of a row may be no UTF-8."""
    content = json.dumps(value, allow_nan=False)
    return Response(content, status, dict(headers or {}), media_type="application/json")
