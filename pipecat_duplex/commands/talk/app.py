"""The web app behind ``pipecat-duplex talk``: the page, and one bot for each visitor.

Offers come as to Pipecat's runner (``POST /api/offer``), with all their ICE candidates in them.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from aiortc.sdp import SessionDescription
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from loguru import logger
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frameworks.rtvi import RTVIObserverParams
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner
from pydantic import BaseModel

from pipecat_duplex.commands.talk.guard import Guard
from pipecat_duplex.commands.talk.llm import LlmParts, TalkLlm
from pipecat_duplex.service.rtvi import DuplexRTVIFeed
from pipecat_duplex.service.service import DuplexLLMService
from pipecat_duplex.service.user_turns import DuplexUserTurnStrategies
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    AtCapacity,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    SessionConfig,
)

PAGE = Path(__file__).parent / "page"
# Whose speech the embedded model follows: a checkout has the whole page, a wheel the model card.
_GUIDES = (
    PAGE.parents[3] / "docs" / "embedded-model.md",
    PAGE.parents[2] / "checkpoints" / "embedded" / "MODEL_CARD.md",
)
GUIDE = next((path for path in _GUIDES if path.is_file()), None)

# A visitor has this long to connect. After that, one who has been silent for so long that the
# connection counts as lost (Pipecat: 3 s without a ping) gets GONE_SECS more: a closed laptop does
# not say goodbye, and its slot is wanted.
CONNECT_SECS = 30.0
GONE_SECS = 3.0


class Offer(BaseModel):
    """A visitor's WebRTC offer.

    Parameters:
        sdp: The session description, with its ICE candidates.
        type: Always ``offer``.
    """

    sdp: str
    type: Literal["offer"]


class Reception:
    """Takes visitors in: one slot of the backend, one connection and one pipeline for each."""

    def __init__(self, backend: DuplexBackend, *, checkpoint: str, llm: TalkLlm | None = None):
        """Initialize the reception.

        Args:
            backend: Where sessions come from; shared by all bots, and not closed here.
            checkpoint: What the backend runs, for metrics and for the page.
            llm: The LLM that gives the words, if there is one.
        """
        self._llm = llm
        self._backend = backend
        self._checkpoint = checkpoint
        self._conversations: set[asyncio.Task] = set()

    @property
    def visitors(self) -> int:
        """Conversations under way."""
        return len(self._conversations)

    async def answer(self, offer: Offer) -> dict[str, Any]:
        """Answer an offer and start its bot.

        Args:
            offer: The visitor's offer.

        Returns:
            The SDP answer: ``sdp``, ``type`` and ``pc_id``.

        Raises:
            AtCapacity: Every slot is taken.
            DuplexError: The backend cannot open a session.
            ValueError: The offer makes no sense.
        """
        _check_offer(offer)
        # The slot comes first: a visitor is refused before anything is set up.
        session = await self._backend.open(SessionConfig())
        try:
            connection = await _connect(offer)
        except BaseException:
            await session.close()
            raise
        task = asyncio.create_task(self._converse(connection, session))
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)
        return connection.get_answer() or {}

    async def close(self) -> None:
        """End every conversation."""
        tasks = list(self._conversations)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, connection: SmallWebRTCConnection, session: DuplexSession):
        parts = None
        if self._llm is not None:
            # Whisper's and Piper's weights are read here, off the event loop.
            parts = await asyncio.to_thread(self._llm.make_parts)
        worker = _build_bot(connection, session, self._checkpoint, parts)
        watch = asyncio.create_task(_cancel_when_gone(connection, worker))
        try:
            runner = WorkerRunner(handle_sigint=False)
            await runner.add_workers(worker)
            await runner.run()
        except Exception:
            logger.exception("A conversation ended with an error")
        finally:
            watch.cancel()
            await session.close()
            await connection.disconnect()


class _OpenedSession(DuplexBackend):
    """A backend that hands out the one session that is open already."""

    def __init__(self, session: DuplexSession):
        self._session = session

    async def open(self, config: SessionConfig) -> DuplexSession:
        return self._session

    async def close(self) -> None:
        await self._session.close()


def _check_offer(offer: Offer) -> None:
    """Raise if this is no offer of sound that anybody could connect to.

    Raises:
        ValueError: It is not one.
    """
    try:
        session = SessionDescription.parse(offer.sdp)
    except Exception as e:  # Whatever the parser trips over.
        raise ValueError(f"the offer cannot be answered: {e}") from e
    sounds = [media for media in session.media if media.kind == "audio"]
    if not sounds:
        raise ValueError("the offer cannot be answered: there is no sound in it")
    for media in sounds:
        if media.ice is None or not (media.ice.usernameFragment and media.ice.password):
            raise ValueError("the offer cannot be answered: it has no ICE credentials")
        if media.dtls is None or not media.dtls.fingerprints:
            raise ValueError("the offer cannot be answered: it has no fingerprint")


async def _connect(offer: Offer) -> SmallWebRTCConnection:
    connection = SmallWebRTCConnection()
    try:
        await connection.initialize(sdp=offer.sdp, type=offer.type)
    except Exception as e:
        await connection.disconnect()
        raise ValueError(f"the offer cannot be answered: {e}") from e
    return connection


def _build_bot(
    connection: SmallWebRTCConnection,
    session: DuplexSession,
    checkpoint: str,
    parts: LlmParts | None,
) -> PipelineWorker:
    transport = SmallWebRTCTransport(
        connection, TransportParams(audio_in_enabled=True, audio_out_enabled=True)
    )
    user_aggregator, assistant_aggregator = LLMContextAggregatorPair(
        LLMContext(),
        # The service's own. Pipecat's default would load a turn model for each visitor.
        user_params=LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies()),
    )
    settings = DuplexLLMService.Settings(words="own" if parts is None else "given")
    pipeline = Pipeline(
        [
            transport.input(),
            *([] if parts is None else [parts.stt]),
            user_aggregator,
            *([] if parts is None else [parts.llm]),
            # The slot belongs to this visit: when its session fails, the visit is over.
            DuplexLLMService(
                checkpoint=checkpoint,
                backend=_OpenedSession(session),
                reopen_secs=0,
                settings=settings,
            ),
            DuplexRTVIFeed(),
            *([] if parts is None or parts.tts is None else [parts.tts]),
            transport.output(),
            assistant_aggregator,
        ]
    )
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(
            audio_in_sample_rate=SAMPLE_RATE_HZ,
            audio_out_sample_rate=SAMPLE_RATE_HZ,
            enable_metrics=True,
        ),
        # A session that fails takes its bot along, so that the visitor hears of it and the slot
        # is free.
        processor_unusable_policy=ProcessorUnusablePolicy.END,
        rtvi_observer_params=RTVIObserverParams(vad_user_speaking_enabled=True),
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    return worker


async def _cancel_when_gone(connection: SmallWebRTCConnection, worker: PipelineWorker):
    deadline_secs = time.monotonic() + CONNECT_SECS
    while time.monotonic() < deadline_secs:
        if connection.is_connected():
            deadline_secs = time.monotonic() + GONE_SECS
        await asyncio.sleep(0.5)
    logger.info("A visitor is gone: the connection has fallen silent")
    await worker.cancel()


def create_app(
    backend: DuplexBackend,
    *,
    checkpoint: str = "embedded",
    note: str | None = None,
    llm: TalkLlm | None = None,
    local_only: bool = False,
) -> FastAPI:
    """Build the app.

    Args:
        backend: Where sessions come from. The app ends its conversations on shutdown, and leaves
            the backend open.
        checkpoint: The name of the model, shown on the page.
        note: Something that visitors should know of it, shown on the page.
        llm: The LLM that gives the words, if there is one.
        local_only: Whether it answers to names of this machine only, as it should where nobody else
            can connect.
    """
    reception = Reception(backend, checkpoint=checkpoint, llm=llm)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await reception.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.reception = reception

    app.add_middleware(Guard, local_only=local_only)

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        return {
            "checkpoint": checkpoint,
            "note": note,
            "llm": llm and llm.model,
            "speaker": llm and llm.speaker,
            "words_by_tts": llm is not None and llm.is_behind,
        }

    @app.post("/api/offer")
    async def answer(offer: Offer) -> dict[str, Any]:
        try:
            return await reception.answer(offer)
        except AtCapacity as e:
            raise HTTPException(503, {"reason": "at_capacity", "message": str(e)}) from e
        except DuplexError as e:
            raise HTTPException(500, {"reason": "backend", "message": str(e)}) from e
        except ValueError as e:
            raise HTTPException(400, {"reason": "offer", "message": str(e)}) from e

    @app.get("/embedded-model.md")
    async def embedded_model() -> FileResponse:
        if GUIDE is None:
            raise HTTPException(404)
        return FileResponse(GUIDE, media_type="text/plain; charset=utf-8")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app
