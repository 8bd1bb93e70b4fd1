"""The language model: one step of the temporal transformer, and the depformer's codebooks."""

from typing import Any

import numpy as np

from training.onnx_graphs.attention import Heads, attend, make_ring
from training.onnx_graphs.builder import GraphBuilder, WeightFile


def build_temporal(weights: WeightFile, config: dict[str, Any]) -> GraphBuilder:
    """One or more steps of the temporal transformer, and the text token after the last of them.

    Inputs: ``tokens`` ``[m, 1 + codebooks, T]`` (-1 is no input), ``positions`` (steps before
    these), ``rows``, ``places``, the rings, and those of the sampling. Outputs: ``text_token``
    ``[m]``, ``hidden`` ``[m, dim]``, ``text_logits`` ``[m, text_card]``, ``new_keys_values``.
    """
    graph = GraphBuilder("temporal", weights)
    dim, layers, streams = config["dim"], config["num_layers"], 1 + config["n_q"]
    heads = Heads(dim, config["num_heads"], config["context"], config["max_period"])
    tokens = graph.input("tokens", "int64", ["m", streams, "T"])
    positions = graph.input("positions", "int64", ["m"])
    steps = graph.slice(graph.node("Shape", tokens), 2, 3, axis=0)
    ring = make_ring(graph, heads, positions, steps, every_step=True)

    value = _embed(graph, config, tokens)
    new: list[str] = []
    for layer in range(layers):
        name = f"transformer.layers.{layer}"
        normed = _norm(graph, value, f"{name}.norm1.alpha")
        found, kept = attend(graph, heads, ring, normed, f"{name}.self_attn", layer)
        new.append(kept)
        value = graph.node("Add", value, found)
        normed = _norm(graph, value, f"{name}.norm2.alpha")
        value = graph.node("Add", value, _gate(graph, normed, f"{name}.gating"))
    last = graph.reshape(graph.slice(value, -1, 2**31, axis=1), 0, dim)
    hidden = _norm(graph, last, "out_norm.alpha")
    logits = _with_bias(graph, hidden, "text_linear")
    text_card = graph.shape("text_linear.weight")[0]
    sampling = Sampling(graph, 1, text_card)
    graph.output("text_token", sampling.choose(0, logits), "int64", ["m"])
    graph.output("hidden", hidden, "float", ["m", dim])
    graph.output("text_logits", logits, "float", ["m", text_card])
    shape = ["m", "T", layers * 2 * dim]
    graph.output("new_keys_values", graph.concat(new, axis=2), "float", shape)
    return graph


def _embed(graph: GraphBuilder, config: dict[str, Any], tokens: str) -> str:
    """Sum the embeddings of all streams: one table holds them all, and a row of zeros."""
    names = ["text_emb.weight", *(f"emb.{index}.weight" for index in range(config["n_q"]))]
    sizes = [graph.shape(name)[0] for name in names]
    starts = np.cumsum([0, *sizes])
    nothing = graph.constant(np.zeros((1, config["dim"])), np.float32)
    table = graph.concat([*(graph.weight(name) for name in names), nothing], axis=0)
    entries = graph.node("Add", tokens, graph.constant(starts[:-1].reshape(1, -1, 1)))
    is_none = graph.node("Less", tokens, graph.constant(0))
    entries = graph.node("Where", is_none, graph.constant(starts[-1]), entries)
    found = graph.node("Gather", table, entries)
    return graph.node("ReduceSum", found, graph.constant([1]), keepdims=0)


def build_depformer(weights: WeightFile, config: dict[str, Any]) -> GraphBuilder:
    """The agent's codebooks, each one chosen knowing those before it.

    Inputs: ``hidden`` ``[m, dim]``, ``text_token`` ``[m]``, and those of the sampling. Output:
    ``codes`` ``[m, codebooks]``.
    """
    graph = GraphBuilder("depformer", weights)
    codebooks, width = config["dep_q"], config["depformer_dim"]
    hidden = graph.input("hidden", "float", ["m", config["dim"]])
    token = graph.input("text_token", "int64", ["m"])
    sampling = Sampling(graph, codebooks, config["card"])
    # What the temporal transformer says to each codebook, in one product.
    projections = [graph.weight(f"depformer_in.{index}.weight") for index in range(codebooks)]
    projection = graph.transpose(graph.concat(projections, axis=0), 1, 0)
    heard = graph.split(graph.node("MatMul", hidden, projection), [width] * codebooks, axis=1)
    layers = [
        DepformerLayer(graph, f"depformer.layers.{layer}", width, config["depformer_num_heads"])
        for layer in range(config["depformer_num_layers"])
    ]
    codes: list[str] = []
    for index in range(codebooks):
        table = "depformer_text_emb" if index == 0 else f"depformer_emb.{index - 1}"
        embedded = graph.node("Gather", graph.weight(f"{table}.weight"), token)
        value = graph.node("Add", heard[index], embedded)
        for layer in layers:
            value = layer.step(value, index)
        token = sampling.choose(index, _with_bias(graph, value, f"linears.{index}"))
        codes.append(graph.reshape(token, -1, 1))
    graph.output("codes", graph.concat(codes, axis=1), "int64", ["m", codebooks])
    return graph


class DepformerLayer:
    """A layer of the depformer, with weights of its own for each codebook."""

    def __init__(self, graph: GraphBuilder, prefix: str, width: int, heads: int):
        self._graph = graph
        self._prefix = prefix
        self._heads = heads
        self._width = width
        self._keys: list[str] = []
        self._values: list[str] = []

    def step(self, value: str, index: int) -> str:
        """Go on with the next codebook, ``[m, width]``."""
        graph, prefix = self._graph, self._prefix
        normed = _norm(graph, value, f"{prefix}.norm1.alpha")
        value = graph.node("Add", value, self._attend(normed, index))
        normed = _norm(graph, value, f"{prefix}.norm2.alpha")
        return graph.node("Add", value, _gate(graph, normed, f"{prefix}.gating.{index}"))

    def _attend(self, value: str, index: int) -> str:
        graph, heads = self._graph, self._heads
        each = self._width // heads
        projected = graph.linear(
            value,
            f"{self._prefix}.self_attn.in_projs.{index}.weight",
            scale_first=(self._width, each**-0.5),
        )
        projected = graph.reshape(projected, 0, 3 * heads, 1, each)
        queries, keys, values = graph.split(projected, [heads] * 3, axis=1)
        self._keys.append(keys)
        self._values.append(values)
        found = values
        if index:
            keys, values = (graph.concat(all, axis=2) for all in (self._keys, self._values))
            scores = graph.node("MatMul", queries, graph.transpose(keys, 0, 1, 3, 2))
            found = graph.node("MatMul", graph.node("Softmax", scores, axis=3), values)
        found = graph.reshape(found, 0, self._width)
        return graph.linear(found, f"{self._prefix}.self_attn.out_projs.{index}.weight")


class Sampling:
    """Choosing tokens, as ``pipecat_duplex.engine.torch.sampling`` does, by Gumbel's rule.

    Inputs of the graph: ``noise`` ``[m, choices, V]``, of which the first top-k are for the tokens
    in the order of their logits, ``inverse_temperature`` ``[m, 1]``, ``last_rank`` ``[m, 1]``
    (top-k less one), and ``widest_top_k`` ``[1]``.
    """

    def __init__(self, graph: GraphBuilder, choices: int, vocabulary: int):
        self._graph = graph
        noise = graph.input("noise", "float", ["m", choices, vocabulary])
        self._inverse_temperature = graph.input("inverse_temperature", "float", ["m", 1])
        last_rank = graph.input("last_rank", "int64", ["m", 1])
        self._widest_top_k = graph.input("widest_top_k", "int64", [1])
        begin, axis = graph.constant([0]), graph.constant([2])
        noise = graph.node("Slice", noise, begin, self._widest_top_k, axis)
        pieces = graph.split(noise, [1] * choices, axis=1)
        self._noise = [graph.node("Flatten", piece, axis=1) for piece in pieces]
        ranks = graph.node(
            "Range", graph.constant(0), graph.node("Squeeze", self._widest_top_k), graph.constant(1)
        )
        self._too_low = graph.node("Less", last_rank, ranks)

    def choose(self, choice: int, logits: str) -> str:
        """The token with the greatest noisy score among the top-k, int64 ``[m]``."""
        graph = self._graph
        ranked, tokens = graph.nodes("TopK", logits, self._widest_top_k, outputs=2)
        scores = graph.node("Mul", ranked, self._inverse_temperature)
        scores = graph.node("Add", scores, self._noise[choice])
        scores = graph.node("Where", self._too_low, graph.scalar(-np.inf), scores)
        best = graph.node("ArgMax", scores, axis=1, keepdims=1)
        return graph.reshape(graph.node("GatherElements", tokens, best, axis=1), -1)


def _norm(graph: GraphBuilder, value: str, alpha: str) -> str:
    weight = graph.reshape(graph.weight(alpha), -1)
    return graph.node("RMSNormalization", value, weight, epsilon=1e-8)


def _gate(graph: GraphBuilder, value: str, prefix: str) -> str:
    """A feed-forward layer, half of which gates the other."""
    hidden = graph.shape(f"{prefix}.linear_out.weight")[1]
    inner = graph.linear(value, f"{prefix}.linear_in.weight")
    gate, passed = graph.split(inner, [hidden] * 2, axis=-1)
    gate = graph.node("Mul", gate, graph.node("Sigmoid", gate))
    return graph.linear(graph.node("Mul", gate, passed), f"{prefix}.linear_out.weight")


def _with_bias(graph: GraphBuilder, value: str, prefix: str) -> str:
    """A linear layer, ``[m, in]`` to ``[m, out]``, with a bias if the weights have one."""
    weight = graph.transpose(graph.weight(f"{prefix}.weight"), 1, 0)
    if not graph.has(f"{prefix}.bias"):
        return graph.node("MatMul", value, weight)
    return graph.node("Gemm", value, weight, graph.weight(f"{prefix}.bias"))
