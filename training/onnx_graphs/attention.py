"""Transformer layers that look back into rings of keys and values.

A ring is only read: the graph gives this step's keys and values out, and whoever runs it writes
them into the ring. So nothing of a ring is ever copied. A step may run for some of the ring's rows:
``rows`` says where in the ring each of the ``m`` running conversations is, and ``places`` says for
each of the ``n`` rows of the ring which conversation to take (any one where none is running; the
result is thrown away).
"""

import math
from dataclasses import dataclass

import numpy as np

from training.onnx_graphs.builder import GraphBuilder


@dataclass(frozen=True)
class Heads:
    """Sizes of an attention: width of the model, number of heads, steps that it looks back on."""

    width: int
    count: int
    context: int
    max_period: float

    @property
    def width_each(self) -> int:
        """Width of one head."""
        return self.width // self.count


@dataclass(frozen=True)
class Ring:
    """What all layers of a transformer share in a step.

    Parameters:
        rows: Input, ``[m]``.
        places: Input, ``[n]``.
        cosine: Of the rotary embedding, ``[m, T, width_each / 2]``.
        sine: Likewise.
        mask: What may be looked at, added to the scores, ``[n, 1, T, context + T]``.
    """

    rows: str
    places: str
    cosine: str
    sine: str
    mask: str


def make_ring(
    graph: GraphBuilder, heads: Heads, positions: str, steps: str, *, every_step: bool = False
) -> Ring:
    """Declare the inputs that say where conversations are, and derive what follows from them.

    Args:
        graph: The graph.
        heads: Sizes.
        positions: Steps that each conversation has behind it, int64 ``[m]``.
        steps: Number of steps at once, ``T``, int64 ``[1]``; at most the context.
        every_step: Whether each of the steps looks back over the whole context, as if they were
            run one by one. Else, as in moshi, all of them take the places of the oldest first.
    """
    rows = graph.input("rows", "int64", ["m"])
    places = graph.input("places", "int64", ["n"])
    cosine, sine = _rotation(graph, heads, positions, steps)
    mask = _mask(graph, heads, positions, places, steps, every_step)
    return Ring(rows, places, cosine, sine, mask)


def _range(graph: GraphBuilder, steps: str) -> str:
    """The numbers from 0 to T - 1, int64 ``[T]``."""
    end = graph.node("Squeeze", steps)
    return graph.node("Range", graph.constant(0), end, graph.constant(1))


def _rotation(graph: GraphBuilder, heads: Heads, positions: str, steps: str) -> tuple[str, str]:
    half = heads.width_each // 2
    exponent = -math.log(heads.max_period) * 2 / heads.width_each
    frequencies = np.exp(np.arange(half) * exponent)
    times = graph.node("Add", graph.reshape(positions, -1, 1), _range(graph, steps))
    times = graph.node("Cast", graph.reshape(times, 0, -1, 1), to=1)
    phases = graph.node("Mul", times, graph.constant(frequencies, np.float32))
    return graph.node("Cos", phases), graph.node("Sin", phases)


def _mask(
    graph: GraphBuilder, heads: Heads, positions: str, places: str, steps: str, every_step: bool
) -> str:
    """Who sees which keys: of the ring those not yet too old, of these steps none that is later."""
    context = graph.constant([heads.context])
    hidden, seen = graph.scalar(-np.inf), graph.scalar(0.0)
    done = graph.reshape(graph.node("Gather", positions, places), -1, 1, 1, 1)
    newest = graph.node("Sub", done, graph.constant([1]))
    index = graph.constant(np.arange(heads.context))
    age = graph.node("Mod", graph.node("Sub", newest, index), context)
    order = _range(graph, steps)
    taken = steps
    if every_step:
        taken = graph.node("Add", graph.reshape(order, -1, 1), graph.constant([1]))
    kept = graph.node("Min", done, graph.node("Sub", context, taken))
    ring = graph.node("Where", graph.node("Less", age, kept), seen, hidden)
    later = graph.node("Less", graph.reshape(order, -1, 1), order)
    chunk = graph.node("Where", later, hidden, seen)
    one, n = graph.constant([1]), graph.node("Shape", places)
    ring = graph.node("Expand", ring, graph.concat([one, one, steps, one], axis=0))
    chunk = graph.node("Expand", chunk, graph.concat([n, one, steps, steps], axis=0))
    return graph.concat([ring, chunk], axis=3)


def attend(graph: GraphBuilder, heads: Heads, ring: Ring, value: str, prefix: str, layer: int):
    """Attention over the ring and this step.

    Args:
        graph: The graph; gets the inputs ``keys.LAYER`` and ``values.LAYER``,
            ``[n, count, context, width_each]``.
        heads: Sizes.
        ring: What the layers share.
        value: Input, ``[m, T, width]``.
        prefix: Of the names of the weights.
        layer: Number of the layer.

    Returns:
        Output, ``[m, T, width]``, and this step's keys and values, ``[m, T, 2 * width]``.
    """
    shape = ("n", heads.count, heads.context, heads.width_each)
    old_keys = graph.input(f"keys.{layer}", "float", shape)
    old_values = graph.input(f"values.{layer}", "float", shape)

    projected = graph.linear(
        value,
        f"{prefix}.in_projs.0.weight",
        scale_first=(heads.width, heads.width_each**-0.5),
    )
    queries, keys, values = graph.split(projected, [heads.width] * 3, axis=2)
    queries, keys = (
        graph.node(
            "RotaryEmbedding",
            turned,
            ring.cosine,
            ring.sine,
            interleaved=1,
            num_heads=heads.count,
        )
        for turned in (queries, keys)
    )
    new = graph.concat([keys, values], axis=2)
    together = graph.node("Gather", graph.concat([queries, new], axis=2), ring.places, axis=0)
    together = graph.reshape(together, 0, 0, 3 * heads.count, heads.width_each)
    together = graph.transpose(together, 0, 2, 1, 3)
    queries, keys, values = graph.split(together, [heads.count] * 3, axis=1)

    scores = graph.concat(
        [
            graph.node("MatMul", queries, graph.transpose(old_keys, 0, 1, 3, 2)),
            graph.node("MatMul", queries, graph.transpose(keys, 0, 1, 3, 2)),
        ],
        axis=3,
    )
    weights = graph.node("Softmax", graph.node("Add", scores, ring.mask), axis=3)
    to_old = graph.slice(weights, 0, heads.context, axis=3)
    to_new = graph.slice(weights, heads.context, 2**31, axis=3)
    found = graph.node(
        "Add", graph.node("MatMul", to_old, old_values), graph.node("MatMul", to_new, values)
    )
    found = graph.reshape(graph.transpose(found, 0, 2, 1, 3), 0, 0, heads.width)
    found = graph.node("Gather", found, ring.rows, axis=0)
    return graph.linear(found, f"{prefix}.out_projs.0.weight"), new
