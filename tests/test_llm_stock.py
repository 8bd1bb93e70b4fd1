"""Pipecat's own OpenAI service in front of ours, with a server on loopback."""

import numpy as np
import pytest
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.llm import OpenAILLMService

from harness.loopback_llm import serving_llm
from pipecat_duplex.engine import Engine
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.service.voice_detector import VoiceDetector
from tests.llm_pipeline import talk, user_audio
from tests.pipeline import silence, speech


def openai(url: str) -> OpenAILLMService:
    settings = OpenAILLMService.Settings(model="loopback", system_instruction="Be brief.")
    return OpenAILLMService(api_key="none", base_url=url, settings=settings)


async def test_a_stock_llm_calls_a_function_and_its_words_are_said() -> None:
    asked = []

    async def look_up(params, number: str):
        """Look up an order.

        Args:
            params: The call.
            number: The order.
        """
        asked.append(number)
        await params.result_callback({"state": "ready"})

    replies = [{"call": "look_up", "arguments": {"number": "7"}}, "order 7 is ready"]
    async with serving_llm(replies) as (server, url):
        result = await talk(
            ScriptedBackend(Script(step_secs=0.003, replies=["mine"])),
            user_audio((1.0, False), (1.0, True), (8.0, False)),
            transcripts=[("where is order seven", 2)],
            replies=[],
            llm=openai(url),
            context=LLMContext(tools=[look_up]),
        )
    assert asked == ["7"]
    assert result.messages()[0] == ("user", "where is order seven")
    assert result.messages()[-1] == ("assistant", "order 7 is ready")
    assert result.service.words == "given"  # An LLM stands upstream.
    assert [message["role"] for message in server.requests[1]["messages"]][-1] == "tool"


@pytest.mark.slow
async def test_the_embedded_model_keeps_the_floor_for_a_stock_llm() -> None:
    engine = await Engine.load("embedded", tts="own")
    question = speech("question")
    audio = np.concatenate([question, silence(7.0)])
    try:
        async with serving_llm(["Thank you! Two plus 3 is five, in kubernetes."]) as (server, url):
            result = await talk(
                engine,
                audio,
                transcripts=[("what is two plus three", 2)],
                replies=[],
                llm=openai(url),
                detector=VoiceDetector(),
            )
    finally:
        await engine.close()
    assert result.messages() == [
        ("user", "what is two plus three"),
        ("assistant", "thank you two plus three is five in"),
    ]
    (said,) = [said for (said,) in result.of("on_said")]
    assert said.unsayable == ("kubernetes.",)
    ((_, start_secs, end_secs, kind),) = result.of("on_user_transcript")
    assert kind == "turn" and start_secs == pytest.approx(0.5, abs=0.4) and end_secs < 3.5
    assert len(server.requests) == 1
