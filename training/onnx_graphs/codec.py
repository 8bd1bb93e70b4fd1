"""The codec's two halves, one step of each: audio to codes, and codes to audio.

Streaming convolutions remember the end of their last input. All of one half's memories lie in one
row of numbers for each conversation (``state``); zeros are a fresh start. The graph takes the rows
that it runs for, and gives them out anew.
"""

from typing import Any

import numpy as np

from training.onnx_graphs.attention import Heads, Ring, attend, make_ring
from training.onnx_graphs.builder import GraphBuilder, WeightFile

STEP_SAMPLES = 1_920

FEW_POSITIONS = 4
"""For so few outputs in time a matrix product is several times faster than a convolution."""


class Memories:
    """The memories of one half, cut out of the state in the order in which they are asked for."""

    def __init__(self, graph: GraphBuilder, rows: str):
        self._graph = graph
        self._rows = rows
        self._sizes: list[int] = []
        self._pieces: list[str] = []
        self._new: list[str] = []

    def old(self, channels: int, length: int) -> str:
        """The next memory, ``[m, channels, length]``."""
        begin = sum(self._sizes)
        self._sizes.append(channels * length)
        piece = self._graph.slice("state.rows", begin, begin + self._sizes[-1], axis=1)
        return self._graph.reshape(piece, 0, channels, length)

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
        self, name: str, weights: WeightFile, config: dict[str, Any], length: int | None = None
    ):
        """Begin a graph; ``length`` is the number of positions in time at first, frames if None."""
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
        steps = self.graph.constant([self.frames])
        offsets = self.graph.node("Mul", self.positions, steps)
        self.ring: Ring = make_ring(self.graph, self._heads, offsets, steps)
        self.memories = Memories(self.graph, self.ring.rows)

    def convolution(
        self, value: str, prefix: str, *, stride: int = 1, dilation: int = 1, edge: str = ""
    ) -> str:
        """A causal convolution, ``[m, in, T]`` to ``[m, out, T / stride]``.

        Args:
            value: Input.
            prefix: Of the names of the weights.
            stride: Of the convolution.
            dilation: Of the convolution.
            edge: Stands in for the memory where it is the first step, if given.
        """
        graph = self.graph
        _, channels, kernel = graph.shape(f"{prefix}.weight")
        length = (kernel - 1) * dilation + 1 - stride
        if length:
            old = self.memories.old(channels, length)
            if edge:
                old = graph.node("Where", edge, graph.slice(value, 0, 1, axis=2), old)
            value = graph.concat([old, value], axis=2)
            self.memories.keep(graph.slice(value, -length, 2**31, axis=2))
        self._length //= stride
        bias = graph.weight(f"{prefix}.bias") if graph.has(f"{prefix}.bias") else ""
        return self._convolve(
            value, graph.weight(f"{prefix}.weight"), bias, kernel, stride, dilation
        )

    def _convolve(
        self, value: str, weight: str, bias: str, kernel: int, stride: int = 1, dilation: int = 1
    ) -> str:
        """A convolution without padding, to as many positions as there are now."""
        graph = self.graph
        if self._length > FEW_POSITIONS or dilation > 1:
            weights = [weight, bias] if bias else [weight]
            return graph.node("Conv", value, *weights, strides=[stride], dilations=[dilation])
        windows = [
            graph.reshape(graph.slice(value, begin, begin + kernel, axis=2), 0, 1, -1)
            for begin in range(0, self._length * stride, stride)
        ]
        # The weight, [out, in, kernel], as [in * kernel, out].
        product = graph.transpose(graph.reshape(weight, 0, -1), 1, 0)
        value = graph.node("MatMul", graph.concat(windows, axis=1), product)
        if bias:
            value = graph.node("Add", value, bias)
        return graph.transpose(value, 0, 2, 1)

    def transposed_convolution(self, value: str, prefix: str, stride: int) -> str:
        """A causal transposed convolution with a kernel of two strides.

        Each output is made of two inputs, so this is a plain convolution over pairs, which gives
        ``stride`` outputs for each. ``[m, in, T]`` to ``[m, out, T * stride]``.
        """
        graph = self.graph
        channels, out, kernel = graph.shape(f"{prefix}.weight")
        assert kernel == 2 * stride
        value = graph.concat([self.memories.old(channels, 1), value], axis=2)
        self.memories.keep(graph.slice(value, -1, 2**31, axis=2))
        # [in, out, 2, stride], the newer input first, to [out, stride, in, 2], the older first.
        weight = graph.reshape(graph.weight(f"{prefix}.weight"), channels, out, 2, stride)
        weight = graph.transpose(weight, 1, 3, 0, 2)
        weight = graph.node("Gather", weight, graph.constant([1, 0]), axis=3)
        weight = graph.reshape(weight, out * stride, channels, 2)
        bias = graph.reshape(graph.weight(f"{prefix}.bias"), -1, 1)
        bias = graph.node("Expand", bias, graph.constant([out, stride]))
        value = self._convolve(value, weight, graph.reshape(bias, -1), 2)
        self._length *= stride
        value = graph.transpose(graph.reshape(value, 0, out, stride, -1), 0, 1, 3, 2)
        return graph.reshape(value, 0, out, -1)

    def elu(self, value: str) -> str:
        """``max(x, exp(min(x, 0)) - 1)``: three times as fast as ONNX Runtime's own operator."""
        graph = self.graph
        below = graph.node("Exp", graph.node("Min", value, graph.scalar(0.0)))
        return graph.node("Max", value, graph.node("Sub", below, graph.scalar(1.0)))

    def residual_block(self, value: str, prefix: str, dilation: int) -> str:
        """A SEANet block: two convolutions beside a skip."""
        graph = self.graph
        inner = self.convolution(self.elu(value), f"{prefix}.block.1.conv.conv", dilation=dilation)
        inner = self.convolution(self.elu(inner), f"{prefix}.block.3.conv.conv")
        return graph.node("Add", value, inner)

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


def codebook_group(index: int) -> str:
    """The first codebook has projections of its own."""
    return "quantizer.rvq_first" if index == 0 else "quantizer.rvq_rest"


def build_encoder(weights: WeightFile, config: dict[str, Any]) -> GraphBuilder:
    """One step of audio to its codes.

    Inputs: ``audio`` ``[m, 1920]``, ``positions`` (steps since the start), ``rows``, ``places``,
    ``state``, and the rings. Outputs: ``codes`` ``[m, codebooks]``, ``new_state``,
    ``new_keys_values``.
    """
    codec = Codec("encoder", weights, config, STEP_SAMPLES)
    graph, seanet = codec.graph, config["seanet"]
    audio = graph.input("audio", "float", ["m", STEP_SAMPLES])
    value = codec.convolution(graph.reshape(audio, 0, 1, -1), "encoder.model.0.conv.conv")
    at = 1
    for ratio in reversed(seanet["ratios"]):
        for layer in range(seanet["n_residual_layers"]):
            dilation = seanet["dilation_base"] ** layer
            value = codec.residual_block(value, f"encoder.model.{at}", dilation)
            at += 1
        value = codec.convolution(
            codec.elu(value), f"encoder.model.{at + 1}.conv.conv", stride=ratio
        )
        at += 2
    value = codec.convolution(codec.elu(value), f"encoder.model.{at + 1}.conv.conv")
    value = codec.transformer(graph.transpose(value, 0, 2, 1), "encoder_transformer")
    value = graph.transpose(value, 0, 2, 1)
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
    codec = Codec("decoder", weights, config)
    graph, seanet, quantizer = codec.graph, config["seanet"], config["quantizer"]
    codes = graph.input("codes", "int64", ["m", quantizer["n_q"]])
    value = _upsample(codec, _look_up(codec, codes))
    value = codec.transformer(value, "decoder_transformer")
    value = codec.convolution(graph.transpose(value, 0, 2, 1), "decoder.model.0.conv.conv")
    at = 1
    for ratio in seanet["ratios"]:
        value = codec.transposed_convolution(
            codec.elu(value), f"decoder.model.{at + 1}.convtr.convtr", ratio
        )
        at += 2
        for layer in range(seanet["n_residual_layers"]):
            dilation = seanet["dilation_base"] ** layer
            value = codec.residual_block(value, f"decoder.model.{at}", dilation)
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
    before = graph.reshape(codec.memories.old(width, 1), 0, 1, -1)
    now = graph.reshape(latent, 0, 1, width)
    codec.memories.keep(now)
    return graph.node("Add", graph.node("Mul", now, newer), graph.node("Mul", before, older))
