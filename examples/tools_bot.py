"""A bot that looks up an order, transfers and hangs up, with a filler while it looks.

As ``any_llm_bot.py``, whose environment it reads, with functions that the LLM calls::

    python examples/tools_bot.py -t webrtc
"""

import asyncio

from any_llm_bot import (
    make_duplex,
    make_llm,
    make_worker,
    run_worker,
    transport_params,
)
from pipecat.frames.frames import EndWorkerFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.services.llm_service import FunctionCallParams

INSTRUCTION = (
    "You answer the telephone of a bookshop. Look up orders when asked, transfer to a person when "
    "the caller wants one, and hang up when the caller says goodbye. Use short, plain sentences."
)

ORDERS = {"seven": "ready at the front door", "nine": "closed on sunday"}


async def look_up_order(params: FunctionCallParams, number: str):
    """Look up an order.

    Args:
        params: The call.
        number: The order's number, in words.
    """
    await asyncio.sleep(3)  # A slow warehouse: the filler comes meanwhile.
    await params.result_callback({"state": ORDERS.get(number, "not known")})


async def transfer(params: FunctionCallParams):
    """Transfer the call to a person."""
    await params.result_callback({"transferred": True})


async def hang_up(params: FunctionCallParams):
    """End the call; what is being said is said to the end first."""
    await params.result_callback({"done": True})
    await params.llm.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)


async def bot(runner_args: RunnerArguments):
    """Run one conversation. Pipecat's runner calls this for each one."""
    transport = await create_transport(runner_args, transport_params)
    context = LLMContext(tools=[look_up_order, transfer, hang_up])
    duplex = make_duplex(filler=["okay", "one then"], filler_after_ms=600)
    worker, _ = make_worker(transport, make_llm(INSTRUCTION), duplex, context, runner_args)
    await run_worker(worker, runner_args)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
