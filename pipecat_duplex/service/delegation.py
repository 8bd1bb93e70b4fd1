"""The service as the frontend of Pipecat's ``LLMWithBackend``: a backend worker does the work.

The model calls no functions. Each message of the user's is therefore handed over, and the backend
decides what there is to do and what the user is told.
"""

import uuid
from collections.abc import Mapping

from pipecat.frames.frames import FunctionCallFromLLM, LLMMessagesAppendFrame
from pipecat.processors.aggregators.llm_context import LLMContext

SILENT_FRONTEND = (
    "DuplexLLMService with words='own' says nothing that a backend wants told: "
    "set words to 'given' or 'both', or leave it out"
)
NO_BACKEND = (
    "DuplexLLMService cannot be the backend of LLMWithBackend: the model calls no functions and "
    "answers no requests. It can be the frontend"
)


class Delegation:
    """What the user has said and the backend has not been told, and what the backend says.

    Parameters:
        is_frontend: Whether the service is the frontend of an ``LLMWithBackend``.
    """

    def __init__(self) -> None:
        """Initialize without a backend."""
        self.is_frontend = False
        self._handed_over = 0

    def installs(self, function_name: str | None) -> bool:
        """Whether a function is the one by which an ``LLMWithBackend`` is asked for work."""
        return self.is_frontend and function_name == _names().DELEGATE_TOOL_NAME

    def call_of(self, context: LLMContext) -> FunctionCallFromLLM | None:
        """Return the call that hands over what the user has said since the last one.

        Args:
            context: With the user's messages.

        Returns:
            The call; ``None`` if the user has said nothing new.
        """
        said = [
            text
            for message in context.get_messages()
            if isinstance(message, Mapping) and message.get("role") == "user"
            if (text := _text(message.get("content")))
        ]
        if len(said) < self._handed_over:
            self._handed_over = 0  # The context was reset.
        new, self._handed_over = said[self._handed_over :], len(said)
        if not new:
            return None
        return FunctionCallFromLLM(
            function_name=_names().DELEGATE_TOOL_NAME,
            tool_call_id=f"delegate-{uuid.uuid4().hex[:12]}",
            # For a strategy whose model words the request; the others read the context.
            arguments={"request": " ".join(new)},
            context=context,
        )

    def take(self, frame: LLMMessagesAppendFrame) -> str:
        """Take what the backend has to say, and leave no model to be run for it.

        Args:
            frame: A message for the context, from the ``LLMWithBackend``.

        Returns:
            What the user is to be told; empty for notes and thoughts.
        """
        if not frame.run_llm:
            return ""
        frame.run_llm = False
        texts = [_text(each.get("content")) for each in frame.messages if isinstance(each, Mapping)]
        return " ".join(filter(None, map(_without_marks, texts)))


def _without_marks(text: str) -> str:
    names = _names()
    return text.removeprefix(names.BACKEND_MESSAGE_PREFIX).removesuffix(names.RELAY_NOTE).strip()


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return " ".join(str(part) for part in parts if part).strip()
    return content.strip() if isinstance(content, str) else ""


def _names():
    """Return Pipecat's module, from 1.13 on. It is loaded: nobody else makes a frontend."""
    from pipecat.pipeline import llm_with_backend  # pyright: ignore

    return llm_with_backend
