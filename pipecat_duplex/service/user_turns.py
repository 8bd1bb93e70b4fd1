"""The turn strategies that the service recommends, for the user aggregator."""

from dataclasses import dataclass

from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies


@dataclass
class DuplexUserTurnStrategies(ExternalUserTurnStrategies):
    """The service opens and closes the user's turns, and the model yields by itself.

    An aggregator without strategies gets the same from the service once the pipeline runs. Until
    then Pipecat's default loads a turn model for each pipeline: 11 MB, and 45 ms of the event
    loop. Give them to the aggregator where a process holds many conversations::

        user, assistant = LLMContextAggregatorPair(
            LLMContext(),
            user_params=LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies()),
        )
    """

    enable_interruptions: bool = False

    def __post_init__(self):
        super().__post_init__()
        for strategy in self.stop or []:
            # No transcript comes: the model hears the user itself.
            strategy.wait_for_transcript = False  # pyright: ignore[reportAttributeAccessIssue]
