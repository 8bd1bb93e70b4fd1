"""A bot with a flow: Pipecat Flows gives the LLM a role and a task in each node.

As ``any_llm_bot.py``, whose environment it reads::

    python examples/flows_bot.py -t webrtc
"""

from any_llm_bot import (
    make_duplex,
    make_llm,
    make_worker,
    run_worker,
    transport_params,
)
from pipecat.flows import FlowManager, NodeConfig
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport


async def choose_day(flow_manager: FlowManager, day: str):
    """Note the day of the visit.

    Args:
        flow_manager: The flow.
        day: A day of the week.
    """
    flow_manager.state["day"] = day
    return {"day": day}, farewell_node()


def greeting_node() -> NodeConfig:
    """Ask for the day of a visit."""
    return {
        "name": "greeting",
        "role_message": "You answer a library's telephone, in short, plain sentences.",
        "task_messages": [{"role": "developer", "content": "Ask for the day of the visit."}],
        "functions": [choose_day],
    }


def farewell_node() -> NodeConfig:
    """Confirm, and say goodbye."""
    return {
        "name": "farewell",
        "task_messages": [{"role": "developer", "content": "Confirm {{ day }}, and say goodbye."}],
        "functions": [],
        "pre_actions": [{"type": "tts_say", "text": "okay"}],
        "post_actions": [{"type": "end_conversation"}],
    }


async def bot(runner_args: RunnerArguments):
    """Run one conversation. Pipecat's runner calls this for each one."""
    transport = await create_transport(runner_args, transport_params)
    llm, duplex = make_llm(), make_duplex()
    worker, pair = make_worker(transport, llm, duplex, LLMContext(), runner_args)
    flow = FlowManager(worker=worker, llm=llm, context_aggregator=pair, transport=transport)

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        await flow.initialize(greeting_node())

    await run_worker(worker, runner_args)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
