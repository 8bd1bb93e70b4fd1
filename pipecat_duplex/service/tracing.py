"""Spans of a conversation, for Pipecat's OpenTelemetry tracing.

They are those of Pipecat's other speech-to-speech services: ``llm_setup`` for a session, and
``llm_response`` for an utterance of the agent, with its text and its time to first audio.
"""

from types import SimpleNamespace

from pipecat.utils.tracing.service_decorators import traced_openai_realtime
from pipecat.utils.tracing.setup import is_tracing_available

PROVIDER = "pipecat_duplex"


class TracedConversation:
    """What a service calls so that its conversation is traced; nothing if tracing is off."""

    async def trace_session(self, session_id: str) -> None:
        """Note that a session began.

        Args:
            session_id: The session.
        """
        await self._trace_setup(session_id)

    async def trace_utterance(self, text: str, *, yielded: bool) -> None:
        """Note that the agent finished an utterance.

        Args:
            text: What it said.
            yielded: Whether it gave up the floor to the user.
        """
        content = SimpleNamespace(transcript=text)
        output = [SimpleNamespace(role="assistant", content=[content])]
        status = "incomplete" if yielded else "completed"
        await self._trace_response(SimpleNamespace(response=_Response(status, output)))

    @traced_openai_realtime(operation="llm_setup")
    async def _trace_setup(self, session_id: str) -> None:
        _describe_span(**{"session.id": session_id})

    @traced_openai_realtime(operation="llm_response")
    async def _trace_response(self, event: SimpleNamespace) -> None:
        _describe_span()


class _Response:
    """An utterance in the form that Pipecat's decorator reads."""

    def __init__(self, status: str, output: list[SimpleNamespace]):
        self.status = status
        self.output = output


def _describe_span(**attributes: str) -> None:
    """Correct what the decorator, made for another provider, says of the span."""
    if not is_tracing_available():
        return
    from opentelemetry import trace

    span = trace.get_current_span()
    span.set_attribute("gen_ai.provider.name", PROVIDER)
    span.set_attributes(attributes)
