"""A full-duplex agent on a telephone number, by Twilio's Media Streams.

Give the number the webhook ``https://your-host/`` ("A call comes in"), and run::

    python examples/twilio_bot.py --host your-host

Twilio asks ``POST /`` what to do with a call and is told to connect it to ``wss://your-host/media``.
There the pipeline runs at the line's own 8 kHz, so that nothing resamples but the service. Callers
may talk over the agent: when it yields, what Twilio still has of its voice is thrown away.

Environment:
    TWILIO_AUTH_TOKEN: Your account's auth token. With it, only Twilio is listened to, and the agent
        can hang up. Without it, anybody who finds the address can talk to your model.
    DUPLEX_CHECKPOINT: The model: ``embedded`` (default), a hub name such as
        ``kyutai/moshiko-pytorch-bf16``, or a local folder.
    DUPLEX_SLOTS: Calls at a time (default 2).
"""

import argparse
import os
from collections.abc import Mapping
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl
from xml.sax.saxutils import quoteattr

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from loguru import logger
from pipecat.frames.frames import Frame, InputDTMFFrame, MetricsFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexBackend,
    DuplexLLMService,
    DuplexMetricsData,
    DuplexUserTurnStrategies,
)
from pipecat_duplex.telephony import (
    MediaStream,
    MediaStreamSerializer,
    StreamRefused,
    StreamTokens,
    is_signed,
)

LINE_RATE_HZ = 8_000
FAREWELL = "goodbye"
"""The agent hangs up after an utterance with this word."""

MAX_MESSAGE_BYTES = 64 * 1024
"""Twilio's messages and requests have a few hundred; larger ones are refused unread."""


MAX_DIGITS = 100
"""Keys that the log line of a call names."""


class CallLog(FrameProcessor):
    """Counts what happens in a call, and logs it in one line."""

    def __init__(self):
        """Begin with nothing counted."""
        super().__init__()
        self.digits = ""
        self._steps = self._yields = self._backchannels = 0
        self._compute_secs = self._lag_secs = 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Count the frame, and pass it on."""
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            self._count(frame)
        await self.push_frame(frame, direction)

    def _count(self, frame: Frame):
        if isinstance(frame, InputDTMFFrame):
            self.digits = (self.digits + frame.button.value)[:MAX_DIGITS]
            logger.debug(f"The caller pressed {frame.button.value}")
        elif isinstance(frame, AgentYieldedFrame):
            self._yields += 1
        elif isinstance(frame, BackchannelFrame):
            self._backchannels += 1
        elif isinstance(frame, MetricsFrame):
            for data in frame.data:
                if isinstance(data, DuplexMetricsData):
                    self._steps += data.steps
                    self._compute_secs += data.steps * data.compute_secs
                    self._lag_secs = max(self._lag_secs, data.lag_secs)

    def summary(self) -> str:
        """Return what was counted."""
        return (
            f"{self._steps} steps, {1000 * self._compute_secs / max(1, self._steps):.0f} ms each, "
            f"lag at most {1000 * self._lag_secs:.0f} ms, {self._yields} yields, "
            f"{self._backchannels} backchannels, digits {self.digits or 'none'}"
        )


async def run_call(
    stream: MediaStream,
    backend: DuplexBackend,
    *,
    auth_token: str | None = None,
    api_url: str | None = None,
    sample_rate_hz: int = LINE_RATE_HZ,
):
    """Hold one call.

    Args:
        stream: The call.
        backend: The model.
        auth_token: The account's, to hang up with.
        api_url: Where Twilio's REST API is, if not where it always is.
        sample_rate_hz: The pipeline's rate. Any other than the line's makes Pipecat resample.
    """
    serializer = MediaStreamSerializer(stream, auth_token=auth_token, base_url=api_url)
    transport = FastAPIWebsocketTransport(
        stream.websocket,
        FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            audio_out_10ms_chunks=8,  # A step of the model in one message.
            audio_out_end_silence_secs=0,
            serializer=serializer,
        ),
    )
    duplex = DuplexLLMService(backend=backend)
    log = CallLog()
    user_aggregator, assistant_aggregator = LLMContextAggregatorPair(
        LLMContext(),
        # The service's own. Pipecat's default would load a turn model for each call.
        user_params=LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies()),
    )
    pipeline = Pipeline(
        [
            transport.input(),
            user_aggregator,
            duplex,  # hears the caller, speaks, and yields when spoken over
            log,
            transport.output(),
            assistant_aggregator,
        ]
    )
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(
            audio_in_sample_rate=sample_rate_hz,
            audio_out_sample_rate=sample_rate_hz,
            enable_metrics=True,
        ),
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel(reason="the caller hung up")

    @duplex.event_handler("on_agent_stopped")
    async def on_agent_stopped(service, event, text):
        if FAREWELL in text.lower() and not event.yielded:
            await worker.stop_when_done()

    @worker.event_handler("on_pipeline_error")
    async def on_pipeline_error(worker, frame):
        if not duplex.is_usable:
            await worker.cancel(reason=frame.error)

    logger.info(f"Call {stream.call_sid}: connected")
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
    await stream.close()
    logger.info(f"Call {stream.call_sid}: {log.summary()}; the line: {serializer.report()}")


def create_app(
    *,
    host: str,
    backend: DuplexBackend | None = None,
    auth_token: str | None = None,
    api_url: str | None = None,
    sample_rate_hz: int = LINE_RATE_HZ,
) -> FastAPI:
    """Return the app that Twilio calls.

    Args:
        host: The public name, with the port if it is not 443.
        backend: The model. Without one, it is loaded when the app starts.
        auth_token: The account's. Without it, anybody may call.
        api_url: Where Twilio's REST API is, if not where it always is.
        sample_rate_hz: The pipelines' rate.
    """
    model = backend
    tokens = StreamTokens()

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        nonlocal model
        if not auth_token:
            logger.warning("No TWILIO_AUTH_TOKEN: anybody may call, and the agent cannot hang up")
        if backend is None:
            model = await load_engine()  # Before the first call, not in it.
        yield
        if backend is None and model is not None:
            await model.close()

    def comes_from_twilio(
        connection: Request | WebSocket, scheme: str, form: Mapping[str, str] | None = None
    ) -> bool:
        if not auth_token:
            return True
        query = f"?{connection.url.query}" if connection.url.query else ""
        signed = is_signed(
            connection.headers.get("x-twilio-signature"),
            auth_token=auth_token,
            url=f"{scheme}://{host}{connection.url.path}{query}",
            form=form,
        )
        if not signed:
            peer = connection.client.host if connection.client else "an unknown peer"
            logger.warning(f"{connection.url.path} from {peer} refused: the signature is wrong")
        return signed

    app = FastAPI(lifespan=lifespan)

    @app.post("/")
    async def answer(request: Request) -> Response:
        form = await read_form(request)
        if form is None:
            return Response("the request is too large", status_code=413)
        if not comes_from_twilio(request, "https", form):
            return Response("the signature is wrong", status_code=403)
        caller = quoteattr(form.get("From", "unknown"))
        token = quoteattr(tokens.issue(form.get("CallSid"), form.get("AccountSid")))
        twiml = (
            '<?xml version="1.0" encoding="UTF-8"?><Response><Connect>'
            f"<Stream url={quoteattr(f'wss://{host}/media')}>"
            f'<Parameter name="from" value={caller}/><Parameter name="token" value={token}/>'
            "</Stream></Connect></Response>"
        )
        return Response(twiml, media_type="application/xml")

    @app.websocket("/media")
    async def media(websocket: WebSocket):
        if not comes_from_twilio(websocket, "wss"):
            await websocket.close()  # Before it is accepted: HTTP 403.
            return
        try:
            stream = await MediaStream.accept(websocket)
        except StreamRefused:
            return
        # The signature of this address is the same for every call; the token is of this one.
        token = stream.parameters.get("token")
        if auth_token and not tokens.take(token, stream.call_sid, stream.account_sid):
            await stream.refuse(StreamRefused(1008, "the stream token is wrong or used up"))
            return
        assert model is not None
        await run_call(
            stream, model, auth_token=auth_token, api_url=api_url, sample_rate_hz=sample_rate_hz
        )

    return app


async def read_form(request: Request) -> dict[str, str] | None:
    """Return the fields of a POST, or None if it is larger than any of Twilio's."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_MESSAGE_BYTES:
            logger.warning(f"{request.url.path} refused: more than {MAX_MESSAGE_BYTES} bytes")
            return None
    return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))


async def load_engine() -> DuplexBackend:
    """Load the model that all calls share."""
    from pipecat_duplex.engine import Engine

    checkpoint = os.getenv("DUPLEX_CHECKPOINT", "embedded")
    return await Engine.load(checkpoint, slots=int(os.getenv("DUPLEX_SLOTS", "2")))


def main():
    """Serve calls until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", required=True, help="your public name, e.g. bot.example.com")
    parser.add_argument("--port", type=int, default=7860, help="where to listen on this machine")
    args = parser.parse_args()
    app = create_app(host=args.host, auth_token=os.getenv("TWILIO_AUTH_TOKEN"))
    uvicorn.run(
        app,
        host="0.0.0.0",
        port=args.port,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
    )


if __name__ == "__main__":
    main()
