"""vLLM-Omni's duplex endpoint as a source of sessions."""

import math
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from pipecat_duplex.remote import omni_message
from pipecat_duplex.remote.backend import OMNI_SCHEMES, RemoteBackend, full_url
from pipecat_duplex.remote.omni_session import MAX_TOLD, OmniSession, told
from pipecat_duplex.remote.session import RemoteLimits, in_one_line
from pipecat_duplex.session import AtCapacity, DuplexError, InvalidPrompt, SessionConfig

REALTIME_PATH = "/v1/realtime"

MODEL = "nvidia/personaplex-7b-v1"

HANDSHAKE_SECS = 15.0
"""How long the server may take to begin a session: its engine has 10 s for it."""

LIMITS = RemoteLimits(dead_secs=5.0, close_secs=1.0)
"""With nobody to go on at, a server is waited for, as long as one that answers pings. Its place is
free once it has said goodbye."""

CONTEXT_STEPS = 3000
"""Positions of a session, with its prompts: ``max_model_len`` in ``personaplex.yaml``."""

VOICE_STEPS = 75
"""Positions of a voice and of the silence behind it: 51 and 12, and some to spare."""

DEFAULT_PERSONA_STEPS = 40
"""Positions of the persona that the server takes by itself."""

STEPS_PER_CHARACTER = 1 / 3
"""Positions of a persona. A tokenizer of 32,000 pieces needs fewer for English."""

PROMPT_ERRORS = ("invalid_voice", "prefill_unavailable")


class OmniBackend(RemoteBackend):
    """Opens sessions on vLLM-Omni's duplex endpoint, which serves PersonaPlex.

    Its protocol has no given words, no histories and no sampling: what asks for them is refused.
    A session ends when the model's context is full, after less than four minutes.

    Example::

        backend = OmniBackend("vllm-omni://gpu.example:8099", voice_prompt="NATM1.pt")
        session = await backend.open(SessionConfig(text_prompt="You are Jane."))
    """

    is_greedy = True
    _protocol = "vLLM-Omni's protocol"
    _unready_hint = ""

    def __init__(self, url: str, *, context_steps: int = CONTEXT_STEPS, **options: Any):
        """Initialize; nothing is connected yet.

        Args:
            url: ``vllm-omni://``, or ``vllm-omnis://`` with TLS, with the host and, if it is not
                ``/v1/realtime``, the path. ``?model=`` names the model, if it is not served as
                ``nvidia/personaplex-7b-v1``.
            context_steps: The server's ``max_model_len``, which it does not tell.
            **options: As for :class:`~pipecat_duplex.remote.RemoteBackend`.

        Raises:
            DuplexError: The URL cannot be used.
        """
        options.setdefault("limits", LIMITS)
        super().__init__(omni_url(url), **options)
        self._context_steps = context_steps

    def _ready_secs(self, prompted: bool) -> float:
        return HANDSHAKE_SECS if self._handshake_secs is None else self._handshake_secs

    async def _check(self, config: SessionConfig, prompts: dict[str, str]) -> None:
        """Refuse what the endpoint cannot do."""
        if config.restores:
            raise DuplexError(f"{self.host} cannot go on with a conversation held elsewhere")
        temperatures = (config.text_temperature, config.audio_temperature)
        names = ("text_temperature", "audio_temperature")
        asked = {name: value for name, value in zip(names, temperatures, strict=True) if value}
        if temperatures != (0, 0):  # Nothing else makes a difference then.
            names = ("text_top_k", "audio_top_k", "seed")
            asked |= {n: value for n in names if (value := getattr(config, n)) is not None}
        if asked:
            told = ", ".join(f"{name}={value}" for name, value in asked.items())
            raise DuplexError(
                f"{self.host} always takes the most likely token: vLLM-Omni has no {told}. Leave "
                "that out, or set both temperatures to 0"
            )

    def _session_url(self, config: SessionConfig) -> str:
        parts = urlsplit(self._url)
        query = {"model": MODEL} | dict(parse_qsl(parts.query, keep_blank_values=True))
        # With autostart, the query's model alone would begin a session, without a voice.
        query |= {"duplex": "1", "autostart": "0"}
        return urlunsplit(parts._replace(query=urlencode(query)))

    def _refusal(self, error: InvalidStatus) -> DuplexError:
        refusal = super()._refusal(error)
        if error.response.status_code in (403, 404):
            return DuplexError(f"{refusal} (does it serve a model with session_mode: duplex?)")
        return refusal

    async def _greet(self, connection: ClientConnection, config: SessionConfig) -> OmniSession:
        prompts = self._prompts_of(config)
        model = dict(parse_qsl(urlsplit(self._url).query)).get("model", MODEL)
        voice, persona = prompts.get("voice_prompt"), prompts.get("text_prompt")
        await connection.send(omni_message.open_session(model, voice, persona))
        created = await self._created(connection)
        return OmniSession(
            connection,
            host=self.host,
            name=in_one_line(created.session[:64]),
            config=config,
            context_steps=max(1, self._context_steps - prompt_steps(persona)),
            limits=self._limits,
        )

    async def _created(self, connection: ClientConnection) -> omni_message.Created:
        while True:
            event, _ = omni_message.parse(await connection.recv())
            if isinstance(event, omni_message.Failure):
                raise self._failure(event)
            if isinstance(event, omni_message.Ended):
                raise DuplexError(
                    f"{self.host} ended the session: {in_one_line(event.reason[:MAX_TOLD])}"
                )
            if isinstance(event, omni_message.Created):
                break
        if event.chunk_period_ms != omni_message.STEP_MS:
            takes = (
                "is not a duplex model"
                if event.chunk_period_ms is None
                else f"takes {event.chunk_period_ms} ms of audio at a time"
            )
            raise DuplexError(
                f"the model of {self.host} {takes}: only PersonaPlex is known here, which takes "
                f"{omni_message.STEP_MS} ms"
            )
        return event

    def _failure(self, failure: omni_message.Failure) -> DuplexError:
        if failure.is_limit:
            return AtCapacity(f"{self.host} has no room: {told(failure)}")
        text = f"{self.host} refused the call: {told(failure)}"
        return InvalidPrompt(text) if failure.code in PROMPT_ERRORS else DuplexError(text)

    def _early_hint(self) -> str:
        return ""


def omni_url(url: str) -> str:
    """Return the WebSocket address that an address of vLLM-Omni means.

    Args:
        url: ``vllm-omni://`` or ``vllm-omnis://``, with a host.

    Raises:
        DuplexError: It is no such address.
    """
    return full_url(url, OMNI_SCHEMES, REALTIME_PATH, "a vLLM-Omni server", "vllm-omni://host:8099")


def prompt_steps(persona: str | None) -> int:
    """Return how many positions the prompts take at most; the server does not tell."""
    if not persona:
        return VOICE_STEPS + DEFAULT_PERSONA_STEPS
    return VOICE_STEPS + math.ceil(len(persona) * STEPS_PER_CHARACTER)
