"""The codec's two halves, one step of each: audio to codes, and codes to audio.

Streaming convolutions remember the end of their last input. All of one half's memories lie in one
row of numbers for each conversation (``state``); zeros are a fresh start. The graph takes the rows
that it runs for, and gives them out anew.
"""

import math
from typing import Any

import numpy as np

from training.onnx_graphs.attention import Heads, Ring, attend, make_ring
from training.onnx_graphs.builder import GraphBuilder, WeightFile

STEP_SAMPLES = 1_920

FEW_POSITIONS = 4
"""For so few outputs in time each one's window is cut out by itself."""

LEAST_WIDTH = 16
"""Columns of a matrix product: fewer take as long."""


class Memories:
    """The memories of one half, cut out of the state in the order in which they are asked for."""

    def __init__(self, graph: GraphBuilder, rows: str):
        self._graph = graph
        self._rows = rows
        self._sizes: list[int] = []
        self._pieces: list[str] = []
        self._new: list[str] = []

    def old(self, length: int, channels: int) -> str:
        """The next memory, ``[m, length, channels]``."""
        begin = sum(self._sizes)
        self._sizes.append(channels * length)
        piece = self._graph.slice("state.rows", begin, begin + self._sizes[-1], axis=1)
        return self._graph.reshape(piece, 0, length, channels)

    def keep(self, value: str) -> None:
        """What the memory asked for last is from now on."""
        self._new.append(self._graph.reshape(value, 0, self._sizes[-1]))

    def declare(self) -> None:
        """Declare the input and the output, now that the sizes are known."""
        size = sum(self._sizes)
        state = self._graph.input("state", "float", ["n", size])
        self._graph.first_node("Gather", state, self._rows, output="state.rows", axis=0)
        new = self._graph.concat(self._new, axis=1)
        self._graph.output("new_state", new, "float", ["m", size])


class Codec:
    """What both halves are built of."""

    def __init__(
        self,
        name: str,
        weights: WeightFile,
        config: dict[str, Any],
        channels: int,
        length: int | None = None,
    ):
        """Begin a graph.

        Args:
            name: Of the graph.
            weights: Of the codec.
            config: Of the codec.
            channels: At first.
            length: Number of positions in time at first; None is frames.
        """
        self.config = config
        self.graph = GraphBuilder(name, weights)
        transformer = config["transformer"]
        self._heads = Heads(
            transformer["d_model"],
            transformer["num_heads"],
            transformer["context"],
            transformer["max_period"],
        )
        self.positions = self.graph.input("positions", "int64", ["m"])
        ratios = config["seanet"]["ratios"]
        frame_samples = int(np.prod(ratios))
        self.frames = STEP_SAMPLES // frame_samples
        self._length = length or self.frames
        self._channels = channels
        steps = self.graph.constant([self.frames])
        offsets = self.graph.node("Mul", self.positions, steps)
        self.ring: Ring = make_ring(self.graph, self._heads, offsets, steps)
        self.memories = Memories(self.graph, self.ring.rows)

    def convolution(self, value: str, prefix: str, *, stride: int = 1, edge: str = "") -> str:
        """A causal convolution, ``stride`` times fewer positions: a matrix product of windows.

        Where outputs are small, a window is for several: its weight then has zeros beside each
        output's own part.

        Args:
            value: Input.
            prefix: Of the names of the weights.
            stride: Of the convolution.
            edge: Stands in for the memory where it is the first step, if given.
        """
        graph = self.graph
        out, channels, kernel = graph.shape(f"{prefix}.weight")
        bias = graph.weight(f"{prefix}.bias") if graph.has(f"{prefix}.bias") else ""
        # [out, in, kernel] to [kernel, in, out].
        weight = graph.transpose(graph.weight(f"{prefix}.weight"), 2, 1, 0)
        length, back = self._length // stride, kernel - stride
        old = self.memories.old(back, channels) if back else ""
        if edge:
            old = graph.node("Where", edge, graph.slice(value, 0, 1, axis=1), old)
        at_once = _count_at_once(length, out, back, stride)
        if length <= FEW_POSITIONS:
            rows = self._slide(value, old, kernel, stride)
        elif back == stride:
            older, newer = graph.split(weight, [stride, stride], axis=0)
            rows = self._rows(value, length)
            bias = self._product(self._delay(rows, old), self._repeat(older, 1, stride), bias)
            weight = newer
        else:
            rows = self._widen(value, old, back, stride * at_once)
        weight = self._repeat(weight, at_once, stride)
        if bias and at_once > 1:
            bias = graph.concat([bias] * at_once, axis=0)
        self._length, self._channels = length, out
        return self._rows(self._product(rows, weight, bias), length)

    def transposed_convolution(self, value: str, prefix: str, stride: int) -> str:
        """A causal transposed convolution whose kernel is two strides.

        Each output is made of two inputs, so this is a plain convolution over pairs, which gives
        ``stride`` outputs for each.
        """
        graph = self.graph
        channels, out, kernel = graph.shape(f"{prefix}.weight")
        assert kernel == 2 * stride
        pairs = self._widen(value, self.memories.old(1, channels), 1, 1)
        # [in, out, 2, stride], the newer input first, to [2, in, stride, out], the older first.
        weight = graph.reshape(graph.weight(f"{prefix}.weight"), channels, out, 2, stride)
        weight = graph.transpose(weight, 2, 0, 3, 1)
        weight = graph.node("Gather", weight, graph.constant([1, 0]), axis=0)
        weight = graph.reshape(weight, 2 * channels, stride * out)
        bias = graph.concat([graph.weight(f"{prefix}.bias")] * stride, axis=0)
        self._length, self._channels = self._length * stride, out
        return self._rows(self._product(pairs, weight, bias), self._length)

    def _rows(self, value: str, count: int) -> str:
        """The same numbers in so many rows for each conversation, ``[m, count, width]``."""
        return self.graph.reshape(value, -1, count, self._length * self._channels // count)

    def _slide(self, value: str, old: str, kernel: int, stride: int) -> str:
        """The window of each output, ``[m, T / stride, kernel * in]``."""
        graph = self.graph
        if old:
            value = graph.concat([old, value], axis=1)
            self.memories.keep(graph.slice(value, stride - kernel, 2**31, axis=1))
        windows = [
            graph.reshape(graph.slice(value, begin, begin + kernel, axis=1), 0, 1, -1)
            for begin in range(0, self._length, stride)
        ]
        return graph.concat(windows, axis=1)

    def _widen(self, value: str, old: str, back: int, positions: int) -> str:
        """Rows of so many positions, each with some of those before it in front."""
        rows = self._rows(value, self._length // positions)
        if not back:
            return rows
        ends = self.graph.slice(rows, -back * self._channels, 2**31, axis=2)
        return self.graph.concat([self._delay(ends, old), rows], axis=2)

    def _delay(self, rows: str, old: str) -> str:
        """The row before each, the first one from memory; the last one is remembered."""
        graph = self.graph
        self.memories.keep(graph.slice(rows, -1, 2**31, axis=1))
        old = graph.reshape(old, 0, 1, -1)
        return graph.concat([old, graph.slice(rows, 0, -1, axis=1)], axis=1)

    def _repeat(self, weight: str, times: int, stride: int) -> str:
        """A weight ``[kernel, in, out]`` for so many outputs, ``[window * in, times * out]``."""
        graph = self.graph
        places = [(index * stride, (times - 1 - index) * stride) for index in range(times)]
        columns = [
            graph.node("Pad", weight, graph.constant([before, 0, 0, after, 0, 0]))
            for before, after in places
        ]
        return graph.node("Flatten", graph.concat(columns, axis=2), axis=2)

    def _product(self, rows: str, weight: str, added: str) -> str:
        """Rows ``[m, rows, in]`` times a weight ``[in, out]``, and a sum; ``[m * rows, out]``."""
        inputs = [self.graph.node("Flatten", rows, axis=2), weight]
        return self.graph.node("Gemm", *inputs, *([added] if added else []))

    def elu(self, value: str) -> str:
        """``max(x, exp(min(x, 0)) - 1)``: three times as fast as ONNX Runtime's own operator."""
        graph = self.graph
        below = graph.node("Exp", graph.node("Min", value, graph.scalar(0.0)))
        return graph.node("Max", value, graph.node("Sub", below, graph.scalar(1.0)))

    def residual_block(self, value: str, prefix: str) -> str:
        """A SEANet block: two convolutions beside a skip."""
        inner = self.convolution(self.elu(value), f"{prefix}.block.1.conv.conv")
        inner = self.convolution(self.elu(inner), f"{prefix}.block.3.conv.conv")
        return self.graph.node("Add", value, inner)

    def transformer(self, value: str, prefix: str) -> str:
        """A transformer, ``[m, T, width]``; its new keys and values are an output of the graph."""
        graph, width = self.graph, self._heads.width
        layers = self.config["transformer"]["num_layers"]
        new: list[str] = []
        for layer in range(layers):
            name = f"{prefix}.transformer.layers.{layer}"
            found, kept = attend(
                graph,
                self._heads,
                self.ring,
                self._norm(value, f"{name}.norm1"),
                f"{name}.self_attn",
                layer,
            )
            new.append(kept)
            value = self._add_scaled(value, found, f"{name}.layer_scale_1.scale")
            hidden = graph.linear(self._norm(value, f"{name}.norm2"), f"{name}.linear1.weight")
            update = graph.linear(graph.node("Gelu", hidden), f"{name}.linear2.weight")
            value = self._add_scaled(value, update, f"{name}.layer_scale_2.scale")
        shape = ["m", self.frames, layers * 2 * width]
        graph.output("new_keys_values", graph.concat(new, axis=2), "float", shape)
        return value

    def _norm(self, value: str, prefix: str) -> str:
        weights = (self.graph.weight(f"{prefix}.{name}") for name in ("weight", "bias"))
        return self.graph.node("LayerNormalization", value, *weights, epsilon=1e-5)

    def _add_scaled(self, value: str, update: str, scale: str) -> str:
        graph = self.graph
        return graph.node("Add", value, graph.node("Mul", update, graph.weight(scale)))

    def codebook(self, index: int) -> str:
        """Entries of a codebook, ``[bins, dimension]``: moshi keeps sums and counts of them."""
        graph = self.graph
        prefix = f"{codebook_group(index)}.vq.layers.{max(0, index - 1)}._codebook"
        usage = graph.node("Max", graph.weight(f"{prefix}.cluster_usage"), graph.scalar(1e-5))
        return graph.node(
            "Div", graph.weight(f"{prefix}.embedding_sum"), graph.reshape(usage, -1, 1)
        )


def _count_at_once(length: int, out: int, back: int, stride: int) -> int:
    """How many outputs of a convolution are made of one window.

    Args:
        length: Outputs in all.
        out: Channels of the output.
        back: Inputs before the first of a window's own.
        stride: Of the convolution.
    """
    if length <= FEW_POSITIONS or back == stride:
        return 1
    least = max(1, LEAST_WIDTH // out, math.ceil(back / stride))
    return next(count for count in range(least, length + 1) if length % count == 0)


def codebook_group(index: int) -> str:
    """The first codebook has projections of its own."""
    return "quantizer.rvq_first" if index == 0 else "quantizer.rvq_rest"


def build_encoder(weights: WeightFile, config: dict[str, Any]) -> GraphBuilder:
    """One step of audio to its codes.

    Inputs: ``audio`` ``[m, 1920]``, ``positions`` (steps since the start), ``rows``, ``places``,
    ``state``, and the rings. Outputs: ``codes`` ``[m, codebooks]``, ``new_state``,
    ``new_keys_values``.
    """
    codec = Codec("encoder", weights, config, config["channels"], STEP_SAMPLES)
    graph, seanet = codec.graph, config["seanet"]
    audio = graph.input("audio", "float", ["m", STEP_SAMPLES])
    value = codec.convolution(graph.reshape(audio, 0, -1, 1), "encoder.model.0.conv.conv")
    at = 1
    for ratio in reversed(seanet["ratios"]):
        value = codec.residual_block(value, f"encoder.model.{at}")
        at += 1
        value = codec.convolution(
            codec.elu(value), f"encoder.model.{at + 1}.conv.conv", stride=ratio
        )
        at += 2
    value = codec.convolution(codec.elu(value), f"encoder.model.{at + 1}.conv.conv")
    value = codec.transformer(value, "encoder_transformer")
    first = graph.node("Equal", codec.positions, graph.constant(0))
    value = codec.convolution(
        value,
        "downsample.conv.conv.conv",
        stride=codec.frames,
        edge=graph.reshape(first, -1, 1, 1),
    )
    codec.memories.declare()
    codes = _quantize(codec, graph.reshape(value, 0, -1))
    graph.output("codes", codes, "int64", ["m", config["quantizer"]["n_q"]])
    return graph


def _quantize(codec: Codec, latent: str) -> str:
    """The nearest entry of each codebook to what the codebooks before it have left over."""
    graph, codes = codec.graph, []
    residual = ""
    for index in range(codec.config["quantizer"]["n_q"]):
        if index < 2:
            name = f"{codebook_group(index)}.input_proj.weight"
            weight = graph.transpose(graph.reshape(graph.weight(name), 0, 0), 1, 0)
            residual = graph.node("MatMul", latent, weight)
        entries = codec.codebook(index)
        # |x - e|² is least where x·e - |e|²/2 is greatest.
        norms = graph.node("ReduceSumSquare", entries, graph.constant([1]), keepdims=0)
        halves = graph.node("Mul", norms, graph.scalar(-0.5))
        nearness = graph.node("Gemm", residual, graph.transpose(entries, 1, 0), halves)
        code = graph.node("ArgMax", nearness, axis=1, keepdims=0)
        codes.append(graph.reshape(code, -1, 1))
        residual = graph.node("Sub", residual, graph.node("Gather", entries, code))
    return graph.concat(codes, axis=1)


def build_decoder(weights: WeightFile, config: dict[str, Any]) -> GraphBuilder:
    """The codes of one step to its audio.

    Inputs: ``codes`` ``[m, codebooks]``, ``positions`` (steps decoded before), ``rows``,
    ``places``, ``state``, and the rings. Outputs: ``audio`` ``[m, 1920]`` in [-1, 1],
    ``new_state``, ``new_keys_values``.
    """
    codec = Codec("decoder", weights, config, config["seanet"]["dimension"])
    graph, seanet, quantizer = codec.graph, config["seanet"], config["quantizer"]
    codes = graph.input("codes", "int64", ["m", quantizer["n_q"]])
    value = _upsample(codec, _look_up(codec, codes))
    value = codec.transformer(value, "decoder_transformer")
    value = codec.convolution(value, "decoder.model.0.conv.conv")
    at = 1
    for ratio in seanet["ratios"]:
        value = codec.transposed_convolution(
            codec.elu(value), f"decoder.model.{at + 1}.convtr.convtr", ratio
        )
        at += 2
        value = codec.residual_block(value, f"decoder.model.{at}")
        at += 1
    value = codec.convolution(codec.elu(value), f"decoder.model.{at + 1}.conv.conv")
    codec.memories.declare()
    audio = graph.node("Clip", value, graph.scalar(-1.0), graph.scalar(1.0))
    graph.output("audio", graph.reshape(audio, 0, -1), "float", ["m", STEP_SAMPLES])
    return graph


def _look_up(codec: Codec, codes: str) -> str:
    """Codes ``[m, codebooks]`` to latents ``[m, width]``; tables are projected beforehand."""
    graph, quantizer = codec.graph, codec.config["quantizer"]
    tables = []
    for index in range(quantizer["n_q"]):
        name = f"{codebook_group(index)}.output_proj.weight"
        weight = graph.transpose(graph.reshape(graph.weight(name), 0, 0), 1, 0)
        tables.append(graph.node("MatMul", codec.codebook(index), weight))
    starts = np.arange(quantizer["n_q"]) * quantizer["bins"]
    entries = graph.node("Add", codes, graph.constant(starts))
    found = graph.node("Gather", graph.concat(tables, axis=0), entries)
    return graph.node("ReduceSum", found, graph.constant([1]), keepdims=0)


def _upsample(codec: Codec, latent: str) -> str:
    """A transposed convolution for each channel alone, ``[m, width]`` to ``[m, T, width]``."""
    graph = codec.graph
    width, _, kernel = graph.shape("upsample.convtr.convtr.convtr.weight")
    assert kernel == 2 * codec.frames
    weight = graph.reshape(graph.weight("upsample.convtr.convtr.convtr.weight"), width, kernel)
    newer, older = graph.split(graph.transpose(weight, 1, 0), [codec.frames] * 2, axis=0)
    before = codec.memories.old(1, width)
    now = graph.reshape(latent, 0, 1, width)
    codec.memories.keep(now)
    return graph.node("Add", graph.node("Mul", now, newer), graph.node("Mul", before, older))
