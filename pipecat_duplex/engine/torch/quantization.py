"""Weights in fewer bits, by bitsandbytes, which moshi brings. Weights only: codec and memory stay.

``int8`` is moshi's own scheme (``moshi.utils.quantize``), the one of the published ``q8``
checkpoints. ``int4`` is NF4 in blocks of 64. Both are made while loading, from full weights.
"""

from collections.abc import Callable
from typing import Literal

import torch
from moshi.models.lm import LMModel
from moshi.modules.streaming import StreamingModule
from moshi.modules.transformer import (
    KVCacheResult,
    RingKVCache,
    StreamingMultiheadAttention,
)
from moshi.utils.quantize import QLinear
from torch import nn

Quantization = Literal["int8", "int4"]
"""How weights are kept: one byte each, or half a byte."""


class QuantizedLayer(nn.Module):
    """A linear layer whose weights are kept in fewer bits.

    The output has the format of the input: moshi's own 8-bit layer gives float16, which turns the
    sums of a bfloat16 model into float32.
    """

    def __init__(self, inner: nn.Module, out_features: int):
        """Initialize around the layer that holds the weights, which gives so many features."""
        super().__init__()
        self.inner = inner
        self.out_features = out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``x``, shape ``(..., in_features)``."""
        return self.inner(x).to(x.dtype)


class QuantizedProjection(nn.Linear):
    """The same for an attention, which reads format and device of its memory off this layer."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype, device: torch.device):
        """Initialize around the layer that holds the weights.

        Args:
            inner: The layer that holds the weights.
            dtype: Number format of the model.
            device: Where it is.
        """
        super().__init__(0, 0, bias=False, dtype=dtype, device=device)
        self.inner = inner

    def reset_parameters(self) -> None:
        """Do nothing: the weight is empty."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply ``input``, shape ``(..., in_features)``."""
        return self.inner(input).to(input.dtype)


def quantize(lm: LMModel, mode: Quantization) -> None:
    """Keep the weights of linear layers in fewer bits, one layer after another.

    Layers with a bias stay as they are, and so do embeddings.

    Args:
        lm: On its device, with full weights.
        mode: How to keep the weights.
    """
    make = QLinear if mode == "int8" else _int4

    def replacement(layer: nn.Module) -> nn.Module | None:
        plain = type(layer) is nn.Linear and layer.bias is None
        return make(layer) if plain else None  # pyright: ignore[reportArgumentType]

    _replace(lm, replacement, lm.dtype, lm.device)


def adopt_published(lm: LMModel) -> None:
    """Let the 8-bit layers of a published ``q8`` checkpoint run in the model's number format."""

    def replacement(layer: nn.Module) -> nn.Module | None:
        return layer if isinstance(layer, QLinear) else None

    _replace(lm, replacement, lm.dtype, lm.device)


def _replace(
    module: nn.Module,
    replacement: Callable[[nn.Module], nn.Module | None],
    dtype: torch.dtype,
    device: torch.device,
    in_attention: bool = False,
) -> None:
    for name, child in module.named_children():
        inner = replacement(child)
        if inner is None:
            attends = isinstance(child, StreamingMultiheadAttention)
            _replace(child, replacement, dtype, device, attends or in_attention)
        elif in_attention:
            setattr(module, name, QuantizedProjection(inner, dtype, device))
        else:
            setattr(module, name, QuantizedLayer(inner, len(child.weight)))  # pyright: ignore


def _int4(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb  # says on import what it lacks: only who asks for it hears that

    weight = linear.weight
    quantized = bnb.nn.Linear4bit(  # pyright: ignore[reportPrivateImportUsage]
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    data = weight.data.contiguous()
    kept = bnb.nn.Params4bit(data, requires_grad=False, quant_type="nf4")  # pyright: ignore
    kept = kept.to(weight.device)  # quantizes  # pyright: ignore
    quantized.weight = kept  # pyright: ignore
    return quantized


class CastingRing(RingKVCache):
    """A ring of keys and values that is kept in one number format and read in another."""

    def __init__(self, ring: RingKVCache, kept: torch.dtype, read: torch.dtype):
        """Initialize in the place of an empty ring.

        Args:
            ring: The ring, of shape ``(2, B, heads, context, dim)``.
            kept: The format in memory, such as ``torch.float8_e4m3fn``.
            read: The format that attention computes in.
        """
        self.capacity = ring.capacity
        self.respect_exec_mask = ring.respect_exec_mask
        self.end_offset = ring.end_offset
        self._read = read
        self.cache = torch.zeros_like(ring.cache, dtype=kept)

    def complete(self, k: torch.Tensor, v: torch.Tensor, exec_mask: torch.Tensor) -> KVCacheResult:
        """Write keys and values of shape ``(B, heads, T, dim)``, and return all that is there."""
        # Eight-bit floats can be copied but not scattered: their bits are.
        kept, self.cache = self.cache, self.cache.view(_bits_of(self.cache.dtype))
        try:
            bits = self.cache.dtype
            result = super().complete(
                k.to(kept.dtype).view(bits), v.to(kept.dtype).view(bits), exec_mask
            )
        finally:
            self.cache = kept
        keys, values = (each.view(kept.dtype).to(self._read) for each in result[:2])
        return KVCacheResult(keys, values, result.positions)


def keep_rings_in(module: StreamingModule, kept: torch.dtype, read: torch.dtype) -> None:
    """Let the attentions of a module that streams keep keys and values in another format.

    Args:
        module: Streaming, before its first step.
        kept: The format in memory.
        read: The format that the module computes in.
    """
    for state in module.get_streaming_state().values():
        ring = getattr(state, "kv_cache", None)
        if ring is not None and (ring.cache.dtype != read or kept != read):
            state.kv_cache = CastingRing(ring, kept, read)


def _bits_of(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype.itemsize == 1 else dtype
