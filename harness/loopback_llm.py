"""A server on loopback that speaks OpenAI's protocol: it streams what a script says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

Reply = str | dict
"""A text, or ``{"call": name, "arguments": {…}}``."""

Answers = Sequence[Reply] | Callable[[list[dict]], Reply]
"""Replies one after another, or what makes one from the messages."""


class LoopbackLlm:
    """Streams replies, a word at a time."""

    def __init__(self, replies: Answers, *, first_secs: float, token_secs: float):
        self._answer = replies if callable(replies) else _one_after_another(replies)
        self._first_secs = first_secs
        self._token_secs = token_secs
        self.requests: list[dict] = []
        self.broken_off = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        reply = self._answer(self.requests[-1]["messages"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await asyncio.sleep(self._first_secs)
            for delta in _deltas(reply, len(self.requests)):
                await response.write(_event({"index": 0, "delta": delta, "finish_reason": None}))
                await asyncio.sleep(self._token_secs)
            done = "stop" if isinstance(reply, str) else "tool_calls"
            await response.write(_event({"index": 0, "delta": {}, "finish_reason": done}))
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.broken_off += 1
            raise
        return response


def _one_after_another(replies: Sequence[Reply]) -> Callable[[list[dict]], Reply]:
    left = list(replies)
    return lambda messages: left.pop(0) if left else "fine"


def _deltas(reply: Reply, number: int) -> list[dict]:
    if isinstance(reply, str):
        words = reply.split(" ")
        return [{"content": word if at == 0 else f" {word}"} for at, word in enumerate(words)]
    function = {"name": reply["call"], "arguments": json.dumps(reply.get("arguments", {}))}
    call = {"index": 0, "id": f"call-{number}", "type": "function", "function": function}
    return [{"tool_calls": [call]}]


def _event(choice: dict) -> bytes:
    chunk = {
        "id": "loopback",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "loopback",
        "choices": [choice],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@asynccontextmanager
async def serving_llm(
    replies: Answers, *, first_secs: float = 0.0, token_secs: float = 0.0
) -> AsyncIterator[tuple[LoopbackLlm, str]]:
    """Serve on loopback; gives the server and its address."""
    llm = LoopbackLlm(replies, first_secs=first_secs, token_secs=token_secs)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", llm.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        yield llm, f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()
