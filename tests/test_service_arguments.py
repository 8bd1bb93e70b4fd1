"""Nothing that a service is given is ignored in silence; what is wrong fails at once, in words."""

import contextlib
import math

import numpy as np
import pytest
from loguru import logger
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import ErrorFrame, LLMContextFrame, LLMUpdateSettingsFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.settings import LLMSettings

from pipecat_duplex import DuplexLLMService, DuplexLLMSettings
from pipecat_duplex.scripted import FINGERPRINT, Script, ScriptedBackend
from pipecat_duplex.session import STEP_SAMPLES
from pipecat_duplex.session.history import STREAMS, History
from tests.pipeline import converse, silence

Settings = DuplexLLMService.Settings


def backend(**script) -> ScriptedBackend:
    return ScriptedBackend(Script(step_secs=0, **script))


@contextlib.contextmanager
def warnings():
    """Collect what is logged as a warning."""
    told: list[str] = []
    sink = logger.add(lambda message: told.append(message.record["message"]), level="WARNING")
    try:
        yield told
    finally:
        logger.remove(sink)


def test_the_model_of_the_settings_selects_the_checkpoint():
    assert DuplexLLMService()._checkpoint == "embedded"
    assert DuplexLLMService(settings=Settings(model="other"))._checkpoint == "other"
    assert DuplexLLMService(checkpoint="a", settings=Settings(model="a"))._checkpoint == "a"
    assert DuplexLLMService(settings=Settings(seed=1)).settings.model == "embedded"


@pytest.mark.parametrize(
    "source",
    [{"backend": backend()}, {"url": "ws://host:8998"}, {"checkpoint": "another"}],
)
def test_a_model_that_cannot_be_selected_is_refused(source):
    with pytest.raises(ValueError, match="model"):
        DuplexLLMService(settings=Settings(model="kyutai/moshiko"), **source)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"system_instruction": "be brief"}, "text_prompt"),
        ({"temperature": 0.5}, "text_temperature"),
        ({"top_k": 5}, "text_top_k"),
        ({"top_p": 0.5}, "top_p"),
        ({"max_tokens": 50}, "max_session_secs"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"extra": {"voice": "x"}}, "voice"),
    ],
)
@pytest.mark.parametrize("kind", [Settings, LLMSettings])
def test_a_setting_without_effect_is_warned_of_once(settings, word, kind):
    with warnings() as told:
        DuplexLLMService(backend=backend(), settings=kind(**settings))
    (warning,) = told
    assert word in warning and "no effect" in warning


def test_settings_that_work_are_not_warned_of():
    with warnings() as told:
        DuplexLLMService(
            backend=backend(),
            settings=Settings(text_temperature=0.5, seed=3, greeting="hello", max_session_secs=9),
        )
    assert not told


@pytest.mark.parametrize(
    "settings",
    [
        {"text_temperature": "hot"},
        {"text_temperature": True},
        {"audio_temperature": [0.8]},
        {"text_top_k": 2.5},
        {"audio_top_k": "25"},
        {"seed": 1.0},
        {"max_session_secs": "60"},
        {"greeting": 5},
        {"text_prompt": ["you are"]},
        {"voice_prompt": b"voice"},
        {"model": 7},
    ],
)
def test_a_setting_of_the_wrong_type_fails_where_it_is_made(settings):
    (name,) = settings
    with pytest.raises(TypeError, match=f"setting {name} must be"):
        Settings(**settings)


def test_numbers_of_numpy_are_numbers():
    config = Settings.defaults("embedded")
    config.apply_update(Settings(seed=np.int64(4), text_temperature=np.float32(0.5)))
    assert config.session_config().seed == 4
    assert config.session_config().text_temperature == 0.5


async def _not_awaited():
    return backend()


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"instructions": "x"}, "takes no argument 'instructions'"),
        ({"reopen_sec": 5}, "did you mean 'reopen_secs'"),
        ({"temperature": 0.5}, "it is a setting"),
        ({"seed": 5}, "it is a setting"),
        ({"checkpoint": 5}, "checkpoint must be"),
        ({"url": 5}, "url must be"),
        ({"url": b"ws://host"}, "url must be"),
        ({"url": ["ws://host", 5]}, "url must be"),
        ({"url": "ws://host", "api_key": 5}, "api_key must be"),
        ({"backend": "ws://host"}, "backend must be"),
        ({"backend": ScriptedBackend}, "backend must be"),
        ({"settings": {"seed": 5}}, "settings must be"),
        ({"vad_analyzer": "silero"}, "vad_analyzer must be"),
        ({"turns": 0.5}, "turns must be"),
        ({"clock": {}}, "clock must be"),
        ({"reopen_secs": "5"}, "reopen_secs must be"),
        ({"reopen_secs": True}, "reopen_secs must be"),
        ({"ending_notice_secs": "5"}, "ending_notice_secs must be"),
        ({"history": b"..."}, "history must be"),
        ({"now_secs": 5.0}, "now_secs must be"),
    ],
)
def test_an_argument_of_the_wrong_type_fails_at_construction(arguments, error):
    with pytest.raises(TypeError, match=error):
        DuplexLLMService(**arguments)


def test_an_engine_that_is_still_loading_is_told_apart():
    with pytest.raises(TypeError, match="await Engine"):
        DuplexLLMService(backend=_not_awaited())


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "ws://host", "backend": backend()},
        {"api_key": "secret"},
        {"api_key": "secret", "backend": backend()},
        {"reopen_secs": -1},
        {"reopen_secs": math.nan},
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError):
        DuplexLLMService(**arguments)


def test_keywords_of_pipecat_still_pass():
    service = DuplexLLMService(backend=backend(), name="duplex", run_in_parallel=False)
    assert service.name == "duplex"


def test_a_function_is_warned_of_once():
    service = DuplexLLMService(backend=backend())

    async def weather(params, city: str):
        """Tell the weather.

        Args:
            city: Where.
        """

    with warnings() as told:
        service.register_function("weather", weather)
    (warning,) = told
    assert "'weather' will never be called" in warning


async def test_instructions_and_tools_in_a_context_are_warned_of_once():
    tool = FunctionSchema("weather", "Tells the weather", {}, [])
    context = LLMContext(
        [{"role": "system", "content": "Be brief."}], tools=ToolsSchema(standard_tools=[tool])
    )
    with warnings() as told:
        await converse(
            backend(), silence(1), inject={t: lambda: LLMContextFrame(context) for t in (0.2, 0.4)}
        )
    (warning,) = [text for text in told if "context" in text]
    assert "instructions and tools" in warning


async def test_a_context_of_a_conversation_is_not_warned_of():
    context = LLMContext([{"role": "assistant", "content": "hello"}])
    with warnings() as told:
        await converse(backend(), silence(1), inject={0.2: lambda: LLMContextFrame(context)})
    assert not [text for text in told if "context" in text]


async def test_settings_of_a_running_conversation_are_taken_for_the_next_session():
    good = DuplexLLMSettings(text_temperature=0.3)
    inject = {0.2: lambda: LLMUpdateSettingsFrame(delta=good)}
    with warnings() as told:
        conversation = await converse(backend(), silence(1), inject=inject)
    assert conversation.service.settings.text_temperature == 0.3
    assert [text for text in told if "from the next session on: text_temperature" in text]


async def test_bad_settings_of_a_running_conversation_are_left_out_in_words():
    bad = DuplexLLMSettings(text_temperature=-1, seed=5)
    inject = {0.2: lambda: LLMUpdateSettingsFrame(delta=bad)}
    conversation = await converse(backend(opening="hello"), silence(2), inject=inject)
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "text_temperature" in error.error
    assert conversation.service.settings.seed is None
    assert conversation.assistant_words() == ["hello"]


async def test_a_model_cannot_be_changed_under_way():
    inject = {0.2: lambda: LLMUpdateSettingsFrame(delta=DuplexLLMSettings(model="other"))}
    with warnings() as told:
        conversation = await converse(backend(), silence(1), inject=inject)
    assert conversation.service.settings.model == "embedded"
    assert [text for text in told if "cannot be changed" in text]


async def test_a_history_that_cannot_be_taken_up_is_warned_of():
    codes = np.zeros((STREAMS, 3), np.int32)
    history = History("another", codes, True, np.zeros((0, STEP_SAMPLES), np.float32))
    assert history.fingerprint != FINGERPRINT
    with warnings() as told:
        conversation = await converse(
            backend(opening="hello", remembers=True), silence(2), history=history
        )
    assert [text for text in told if "begins afresh" in text]
    assert conversation.assistant_words() == ["hello"]
