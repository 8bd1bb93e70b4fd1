"""moshi's two transformers, one step at a time, with fewer calls.

On a CPU a step of a small model takes as long as it takes to call its operations, and most of
moshi's are bookkeeping: each layer works out positions, masks and rotations anew, and the depth
transformer sets up ring buffers for eight tokens. Here this is done once a step. The weights, the
memory and the masks are moshi's own, and so is the arithmetic up to rounding. On a GPU moshi's code
is recorded into a graph, which costs no calls at all: it stays.
"""

import torch
from moshi.models.lm import LMModel
from moshi.models.lm_utils import ScaledEmbedding
from moshi.modules.transformer import (
    RMSNorm,
    StreamingMultiheadAttention,
    StreamingTransformer,
    StreamingTransformerLayer,
)
from torch.nn import functional as F


def can_run(lm: LMModel) -> bool:
    """Whether the model is built of what is known here; LoRA layers are."""
    if lm.device.type != "cpu" or lm.dtype != torch.float32:
        return False
    if lm.depformer is None or lm.depformer_text_emb is None or lm.depformer_emb is None:
        return False
    depth_attentions = [layer.self_attn for layer in _layers(lm.depformer)]
    time_attentions = [layer.self_attn for layer in _layers(lm.transformer)]
    embeddings = [*lm.emb, lm.text_emb, *lm.depformer_emb, lm.depformer_text_emb]
    return (
        lm.depformer_weights_per_step_schedule is None
        and lm.depformer_multi_linear
        and lm.transformer.positional_embedding == "rope"
        and lm.depformer.positional_embedding == "none"
        and all(_is_plain_layer(x) for t in (lm.transformer, lm.depformer) for x in _layers(t))
        and all(len(a.in_projs) == lm.dep_q for a in depth_attentions)
        and all((a.context or lm.dep_q) >= lm.dep_q for a in depth_attentions)
        and all(a.rope is not None and a.rope.interleave for a in time_attentions)
        and all(a.context and a.mult == 1 for a in time_attentions)
        and all(_is_plain_embedding(embedding) for embedding in embeddings)
    )


class TimeTransformer:
    """The transformer over time: a step of every slot, and the logits of its text.

    Attention memory is moshi's ring of the last ``context`` steps, one for each slot. Its order
    does not matter, since keys carry their rotation: what is filled is attended to.
    """

    def __init__(self, lm: LMModel):
        """Initialize around a model that streams."""
        self._lm = lm
        self._layers = _layers(lm.transformer)
        attention = self._layers[0].self_attn
        self._heads = attention.num_heads
        self._dim = attention.embed_dim // attention.num_heads
        pairs = torch.arange(self._dim // 2, dtype=torch.float32)
        self._frequencies = lm.transformer.max_period ** (-2 * pairs / self._dim)

    def __call__(self, sequence: torch.Tensor, *_conditions: None) -> tuple:
        """Take a step.

        Args:
            sequence: Tokens of every stream, text first, shape ``(B, 1 + codebooks, 1)``.
            _conditions: moshi's places for conditions, which no full-duplex model has.

        Returns:
            Output, shape ``(B, 1, dim)``, and text logits, shape ``(B, 1, 1, V)``.
        """
        lm = self._lm
        sequence = sequence.clamp(min=0)  # slots that do not run may hold no tokens yet
        x = _embed(lm.text_emb, sequence[:, 0])
        for codebook, embedding in enumerate(lm.emb, start=lm.audio_offset):
            x = x + _embed(embedding, sequence[:, codebook])
        state = self._layers[0].self_attn._streaming_state
        assert state is not None and state.kv_cache is not None
        offsets, capacity = state.offset, state.kv_cache.capacity
        place = (torch.arange(len(offsets)), offsets % capacity)
        angles = offsets[:, None].float() * self._frequencies
        rotation = torch.polar(torch.ones_like(angles), angles)[:, None, None]
        filled = min(capacity, int(offsets.max()) + 1)
        mask = (torch.arange(filled) <= offsets[:, None])[:, None, None]
        for layer in self._layers:
            x = x + self._attend(layer.self_attn, _normalize(layer.norm1, x), place, rotation, mask)
            assert layer.gating is not None
            x = x + layer.gating(_normalize(layer.norm2, x))
        offsets.add_(state.exec_mask)
        if lm.out_norm:
            x = lm.out_norm(x)
        return x, lm.text_linear(x)[:, None]

    def _attend(
        self,
        attention: StreamingMultiheadAttention,
        x: torch.Tensor,
        place: tuple[torch.Tensor, torch.Tensor],
        rotation: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        slots, filled = len(x), mask.shape[-1]
        projected = attention.in_projs[0](x).view(slots, 3, self._heads, self._dim)
        pairs = projected[:, :2].unflatten(-1, (-1, 2))
        turned = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(-2)
        state = attention._streaming_state
        assert state is not None and state.kv_cache is not None
        keys, values = state.kv_cache.cache
        rows, steps = place
        # A slot that does not run writes too, to a place that it will write to again.
        keys[rows, :, steps] = turned[:, 1]
        values[rows, :, steps] = projected[:, 2]
        out = F.scaled_dot_product_attention(
            turned[:, 0, :, None], keys[:, :, :filled], values[:, :, :filled], mask
        )
        return attention.out_projs[0](out.view(slots, 1, -1))


class DepthTransformer:
    """The transformer over the agent's codebooks. It begins anew in every step."""

    def __init__(self, lm: LMModel, slots: int):
        """Initialize.

        Args:
            lm: The language model.
            slots: Number of slots, ``B``.
        """
        assert lm.depformer is not None
        self._lm = lm
        self._layers = _layers(lm.depformer)
        heads = self._layers[0].self_attn.num_heads
        dim = self._layers[0].self_attn.embed_dim // heads
        shape = (len(self._layers), slots, heads, lm.dep_q, dim)
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)

    def __call__(
        self, codebook: int, token: torch.Tensor, transformer_out: torch.Tensor
    ) -> torch.Tensor:
        """Go on by one codebook; those before it have been gone through.

        Args:
            codebook: From 0.
            token: What was chosen before: the text, then the codebook before. Shape ``(B,)``.
            transformer_out: Output of the transformer over time, shape ``(B, 1, dim)``.

        Returns:
            Logits, shape ``(B, V)``.
        """
        lm = self._lm
        assert lm.depformer_emb is not None and lm.depformer_text_emb is not None
        embedding = lm.depformer_emb[codebook - 1] if codebook else lm.depformer_text_emb
        x = lm.depformer_in[codebook](transformer_out) + _embed(embedding, token[:, None])
        for number, layer in enumerate(self._layers):
            x = x + self._attend(number, codebook, _normalize(layer.norm1, x))
            assert isinstance(layer.gating, torch.nn.ModuleList)
            x = x + layer.gating[codebook](_normalize(layer.norm2, x))
        return lm.linears[codebook](lm.depformer_norms[codebook](x))[:, 0]

    def _attend(self, number: int, codebook: int, x: torch.Tensor) -> torch.Tensor:
        attention = self._layers[number].self_attn
        slots, heads = len(x), attention.num_heads
        query, key, value = attention.in_projs[codebook](x).view(slots, 3, heads, -1).unbind(1)
        keys, values = self._keys[number], self._values[number]
        keys[:, :, codebook] = key
        values[:, :, codebook] = value
        out = F.scaled_dot_product_attention(
            query[:, :, None], keys[:, :, : codebook + 1], values[:, :, : codebook + 1]
        )
        return attention.out_projs[codebook](out.view(slots, 1, -1))


def _layers(transformer: StreamingTransformer) -> list[StreamingTransformerLayer]:
    return list(transformer.layers)  # pyright: ignore[reportReturnType]


def _is_plain_layer(layer: StreamingTransformerLayer) -> bool:
    return (
        not layer.skip_self_attn
        and layer.cross_attention is None
        and layer.gating is not None
        and layer.self_attn.kv_repeat == 1
        and layer.self_attn.causal
        and isinstance(layer.layer_scale_1, torch.nn.Identity)
        and _is_plain_norm(layer.norm1)
        and _is_plain_norm(layer.norm2)
    )


def _is_plain_norm(norm: torch.nn.Module) -> bool:
    return isinstance(norm, RMSNorm)


def _is_plain_embedding(embedding: torch.nn.Module) -> bool:
    return (
        isinstance(embedding, ScaledEmbedding)
        and embedding.norm is None
        and not embedding.demux_second_stream
    )


def _normalize(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """RMS norm in float32, which is what runs on a CPU."""
    return F.rms_norm(x, x.shape[-1:], norm.alpha.flatten(), norm.eps)  # pyright: ignore


def _embed(embedding: torch.nn.Module, token: torch.Tensor) -> torch.Tensor:
    """Look up tokens of shape ``(B, 1)``; none is moshi's zero, which only conditions bring."""
    y = F.embedding(token, embedding.weight)  # pyright: ignore[reportArgumentType]
    return y if embedding.low_rank is None else embedding.low_rank(y)  # pyright: ignore
