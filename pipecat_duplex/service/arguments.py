"""Checks of what a service is given: nothing is accepted and then ignored in silence."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loguru import logger
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.settings import LLMSettings
from pipecat.utils.types import is_given

UNSUPPORTED_SETTINGS: dict[str, str] = {
    "system_instruction": "the model cannot be instructed; text_prompt gives a role to models that "
    "were trained to take one",
    "temperature": "set text_temperature and audio_temperature",
    "top_k": "set text_top_k and audio_top_k",
    "top_p": "the model samples by temperature and top_k",
    "max_tokens": "a conversation has no longest response; max_session_secs ends a session",
    "frequency_penalty": "the model knows no penalties",
    "presence_penalty": "the model knows no penalties",
    "filter_incomplete_user_turns": "the model itself decides when it speaks",
    "user_turn_completion_config": "the model itself decides when it speaks",
}
"""Settings of other LLM services, and what to do instead. One warning each."""

NO_TOOLS = "a full-duplex model calls no functions"


def warn_of_unsupported_settings(service: object, settings: LLMSettings) -> None:
    """Log a warning for each setting that was given and has no effect.

    Args:
        service: Whose settings they are, for the log.
        settings: What was given.
    """
    for name, advice in UNSUPPORTED_SETTINGS.items():
        value = getattr(settings, name)
        if is_given(value) and value:
            logger.warning(f"{service}: the setting {name} has no effect: {advice}")
    for name in settings.extra:
        logger.warning(f"{service}: the setting {name} is unknown and has no effect")


def unread_context(context: LLMContext) -> str:
    """Return what of a context would instruct another LLM, in words; empty if there is nothing."""
    parts = []
    roles = {message["role"] for message in context.get_messages() if isinstance(message, dict)}
    if roles & {"system", "developer"}:
        parts.append("instructions")
    if is_given(context.tools) and context.tools:
        parts.append("tools")
    return " and ".join(parts)


def check_keywords(service_class: type, keywords: Iterable[str]) -> None:
    """Refuse keyword arguments that no constructor of the service takes.

    Args:
        service_class: The class.
        keywords: What its constructor does not name itself.

    Raises:
        TypeError: One is unknown; the message names the closest that is known.
    """
    known = {
        name
        for base in service_class.__mro__
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    } - {"self"}
    for keyword in keywords:
        if keyword in known:
            continue
        close = difflib.get_close_matches(keyword, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if keyword in LLMSettings.__dataclass_fields__:
            hint = f"; it is a setting: settings={service_class.__name__}.Settings({keyword}=…)"
        raise TypeError(f"{service_class.__name__} takes no argument {keyword!r}{hint}")


def check_types(arguments: Mapping[str, tuple[Any, type | tuple[type, ...], str]]) -> None:
    """Refuse arguments of the wrong type.

    Args:
        arguments: For each name its value, the types it may have, and these in words. ``None``
            passes.

    Raises:
        TypeError: One has another type.
    """
    for name, (value, types, words) in arguments.items():
        if value is None:
            continue
        is_bool = isinstance(value, bool) and bool not in (
            types if isinstance(types, tuple) else ()
        )
        if is_bool or not isinstance(value, types):
            raise TypeError(f"{name} must be {words}, not {value!r}")


def check_url(url: object) -> None:
    """Refuse what is neither an address nor a list of some.

    Raises:
        TypeError: It is something else.
    """
    if url is None or isinstance(url, str):
        return
    if not isinstance(url, Sequence) or not all(isinstance(each, str) for each in url):
        raise TypeError(f"url must be an address or a list of addresses, not {url!r}")


def check_backend(backend: object) -> None:
    """Refuse what no session can come from.

    Raises:
        TypeError: It is not a backend.
    """
    if backend is None:
        return
    if inspect.isawaitable(backend):
        if inspect.iscoroutine(backend):
            backend.close()
        raise TypeError("backend is not loaded yet: backend=await Engine.load(…)")
    if isinstance(backend, type) or not all(hasattr(backend, name) for name in ("open", "close")):
        raise TypeError(f"backend must be an Engine or another source of sessions, not {backend!r}")
