"""The service as the frontend of Pipecat's ``LLMWithBackend``: Pipecat's worker, a loopback LLM."""

import asyncio

import pytest
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.llm import OpenAILLMService

from harness.loopback_llm import serving_llm
from pipecat_duplex import DuplexLLMService
from pipecat_duplex.scripted import Script, ScriptedBackend
from tests.llm_pipeline import talk, user_audio

backend_pipeline = pytest.importorskip(
    "pipecat.pipeline.llm_with_backend", reason="this version of Pipecat has no LLMWithBackend"
)
LLMWithBackend = backend_pipeline.LLMWithBackend
ONE_QUESTION = (1.0, False), (1.0, True), (7.0, False)
TWO_QUESTIONS = (1.0, False), (1.0, True), (4.0, False), (1.0, True), (7.0, False)


def backend() -> ScriptedBackend:
    # Steps take a little real time, as the worker and its server do.
    return ScriptedBackend(Script(step_secs=0.004, replies=["mine"]))


def worker(url: str, **context):
    from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker

    settings = OpenAILLMService.Settings(model="loopback", system_instruction="Look things up.")
    llm = OpenAILLMService(api_key="none", base_url=url, settings=settings)
    return BackendLLMWorker(llm=llm, context=LLMContext(**context))


async def hold(replies, *parts, transcripts, connector=None, context=None, **settings):
    async with serving_llm(replies) as (server, url):
        result = await talk(
            backend(),
            user_audio(*parts),
            transcripts=transcripts,
            replies=[],
            own=True,
            wrap=lambda service: LLMWithBackend(
                frontend=service, backend=worker(url, **(context or {})), connector=connector
            ),
            settings=DuplexLLMService.Settings(**settings),
        )
    return result, server


def asked(server) -> list[str]:
    """Return what the backend was asked, oldest first."""
    messages = server.requests[-1]["messages"]
    return [str(each["content"]) for each in messages if each["role"] == "user"]


async def test_what_the_backend_marks_is_said_and_the_rest_is_not():
    replies = ["I look at the tide.\n>> the sea is calm"]
    result, server = await hold(replies, *ONE_QUESTION, transcripts=[("how is the sea", 2)])
    assert "how is the sea" in asked(server)[0]
    assert result.messages() == [("user", "how is the sea"), ("assistant", "the sea is calm")]
    assert result.service.words == "given"  # "mine" was never said
    notes = [m["content"] for m in result.context.get_messages() if m["role"] == "developer"]
    assert any("I look at the tide" in note for note in notes)
    assert len(server.requests) == 1


async def test_each_message_is_handed_over_once():
    replies = [">> the sea is calm", ">> the cat sleeps"]
    result, server = await hold(
        replies, *TWO_QUESTIONS, transcripts=[("how is the sea", 2), ("where is the cat", 2)]
    )
    first, second = asked(server)
    assert "how is the sea" in first and "where is the cat" not in first
    assert "where is the cat" in second and "how is the sea" not in second
    assert [text for role, text in result.messages() if role == "assistant"] == [
        "the sea is calm",
        "the cat sleeps",
    ]


async def test_the_backend_calls_a_function_and_a_filler_comes_first():
    called = []

    async def look_up(params, what: str):
        """Look something up.

        Args:
            params: The call.
            what: What to look up.
        """
        called.append(what)
        await asyncio.sleep(0.2)  # of real time: some seconds of the conversation
        await params.result_callback({"state": "calm"})

    replies = [{"call": "look_up", "arguments": {"what": "sea"}}, ">> the sea is calm"]
    result, _ = await hold(
        replies,
        (1.0, False),
        (1.0, True),
        (60.0, False),  # as long as it takes on a quick machine
        transcripts=[("how is the sea", 2)],
        context={"tools": [look_up]},
        filler="one moment",
        filler_after_ms=400,
    )
    assert called == ["sea"]
    said = [text for role, text in result.messages() if role == "assistant"]
    assert " ".join(said) == "one moment the sea is calm"


async def test_a_yield_drops_the_rest_and_the_backend_is_asked_again():
    long = " ".join(f"word{number}" for number in range(40))
    result, server = await hold(
        [f">> {long}", ">> the cat sleeps"],
        (1.0, False),
        (1.0, True),
        (5.0, False),
        (1.0, True),
        (6.0, False),
        transcripts=[("how is the sea", 2), ("where is the cat", 2)],
    )
    (_, sea), (role, cut), (_, cat), (_, answer) = result.messages()
    assert (sea, role, cat, answer) == (
        "how is the sea",
        "assistant",
        "where is the cat",
        "the cat sleeps",
    )
    assert 1 <= len(cut.split()) < 40 and long.startswith(cut)
    assert "where is the cat" in asked(server)[1]


async def test_another_frontend_may_stand_upstream():
    told: list[str] = []

    def frontend_says(messages: list[dict]) -> str | dict:
        # The tool's result may stand before or after what the backend says.
        answered = any(str(message.get("content")).startswith("Backend: ") for message in messages)
        if not any(message["role"] == "tool" for message in messages):
            return {"call": "delegate"}
        is_news = answered and "the sea is calm" not in told
        told.append("the sea is calm" if is_news else "okay")
        return told[-1]

    async with serving_llm(frontend_says) as (_, url), serving_llm([">> calm"]) as (_, other):
        result = await talk(
            backend(),
            user_audio(*ONE_QUESTION),
            transcripts=[("how is the sea", 2)],
            replies=[],
            llm=LLMWithBackend(
                frontend=OpenAILLMService(
                    api_key="none",
                    base_url=url,
                    settings=OpenAILLMService.Settings(model="loopback"),
                ),
                backend=worker(other),
            ),
        )
    said = " ".join(text for role, text in result.messages() if role == "assistant")
    assert "the sea is calm" in told
    assert said == " ".join(told)


async def test_a_strategy_that_words_the_request_gets_the_users_words():
    strategy = backend_pipeline.ExplicitBackendRequestStrategy()
    connector = backend_pipeline.BackendConnector(request_strategy=strategy)
    _, server = await hold(
        [">> the sea is calm"],
        *ONE_QUESTION,
        transcripts=[("how is the sea", 2)],
        connector=connector,
    )
    assert asked(server)[0].startswith("how is the sea\n")


def test_no_backend_and_no_silent_frontend():
    with pytest.raises(ValueError, match="set words to 'given' or 'both'"):
        settings = DuplexLLMService.Settings(words="own")
        LLMWithBackend(
            frontend=DuplexLLMService(backend=backend(), settings=settings), backend="worker"
        )
    service = DuplexLLMService(backend=backend())
    assert "can be the frontend" in service.llm_with_backend_role_objection("backend")
    assert service.words == "own"
