"""The model in this process: checkpoints, slots, and the batched step loop.

Two packages run the model: ``onnx`` on ONNX Runtime, which the base install has, and ``torch`` on
Kyutai's ``moshi``, which needs the extra of that name. Each is imported when a checkpoint asks for
it; what they share knows neither.
"""

from pipecat_duplex.engine.engine import Engine
from pipecat_duplex.engine.model import ModelSummary
from pipecat_duplex.engine.stats import EngineStats

__all__ = ["Engine", "EngineStats", "ModelSummary"]
