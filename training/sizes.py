"""Sizes of the models, in the keys that moshi's own loaders expect."""

from typing import Any, Literal

Size = Literal["embedded", "tiny"]

SAMPLE_RATE = 24_000
STEP_SAMPLES = 1_920  # one step: 80 ms
STEP_SECONDS = STEP_SAMPLES / SAMPLE_RATE
CODEBOOKS = 8
DELAYS = [0] + 2 * ([0] + [1] * (CODEBOOKS - 1))

PADDING_ID = 3
END_OF_PADDING_ID = 0


def mimi_config(size: Size = "embedded") -> dict[str, Any]:
    """Configuration of the codec: 24 kHz, 12.5 Hz, eight codebooks.

    The transformers look back one second only. Training hears stretches of 1.6 s, so a longer look
    would meet positions that training never saw; and with a short one the codes of an utterance
    depend on nothing but its last seconds, which lets dialogues be composed from encoded pieces.
    """
    filters, dimension, layers, heads, latent, bins = {
        "embedded": (16, 128, 2, 4, 64, 512),
        "tiny": (4, 32, 1, 2, 16, 64),
    }[size]
    return {
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": {
            "channels": 1,
            "dimension": dimension,
            "causal": True,
            "n_filters": filters,
            "n_residual_layers": 1,
            "activation": "ELU",
            "compress": 2,
            "dilation_base": 2,
            "disable_norm_outer_blocks": 0,
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 3,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": [8, 6, 5, 4],
            "true_skip": True,
        },
        "quantizer": {
            "dimension": latent,
            "n_q": CODEBOOKS,
            "bins": bins,
            "input_dimension": dimension,
            "output_dimension": dimension,
        },
        "transformer": {
            "d_model": dimension,
            "num_heads": heads,
            "num_layers": layers,
            "causal": True,
            "layer_scale": 0.1,
            "context": 25,
            "conv_layout": True,
            "max_period": 10_000,
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": 4 * dimension,
            "input_dimension": dimension,
            "output_dimensions": [dimension],
        },
    }


def lm_config(text_card: int, size: Size = "embedded") -> dict[str, Any]:
    """Configuration of the language model: one text stream, eight agent and eight user codebooks.

    Args:
        text_card: number of pieces of the tokenizer.
        size: ``embedded`` or ``tiny``.
    """
    dim, layers, heads, context, depth_dim, depth_layers = {
        "embedded": (256, 6, 4, 512, 128, 2),
        "tiny": (64, 2, 2, 100, 64, 1),
    }[size]
    return {
        "dim": dim,
        "text_card": text_card,
        "existing_text_padding_id": PADDING_ID,
        "n_q": 2 * CODEBOOKS,
        "dep_q": CODEBOOKS,
        "card": mimi_config(size)["quantizer"]["bins"],
        "num_heads": heads,
        "num_layers": layers,
        "hidden_scale": 4.125,
        "causal": True,
        "layer_scale": None,
        "context": context,
        "max_period": 10_000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "bias_proj": True,
        "depformer_dim": depth_dim,
        "depformer_dim_feedforward": int(4.125 * depth_dim),
        "depformer_num_heads": 4 if size == "embedded" else 2,
        "depformer_num_layers": depth_layers,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": CODEBOOKS,
        "depformer_max_period": 10_000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": DELAYS,
    }


def recognizer_config(text_card: int, codebooks: int, card: int) -> dict[str, Any]:
    """A recogniser's whole ``config.json``, in the keys of Kyutai's, small as ``tiny`` is.

    Args:
        text_card: number of pieces of the tokenizer.
        codebooks: how many it hears.
        card: entries of each.
    """
    return {
        "card": card,
        "n_q": codebooks,
        "dep_q": 0,
        "delays": [0] * (1 + codebooks),
        "dim": 64,
        "text_card": text_card,
        "existing_text_padding_id": PADDING_ID,
        "num_heads": 2,
        "num_layers": 2,
        "hidden_scale": 4.125,
        "causal": True,
        "layer_scale": None,
        "context": 75,
        "max_period": 100000.0,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": 64,
        "depformer_num_heads": 2,
        "depformer_num_layers": 1,
        "depformer_dim_feedforward": None,
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "extra_heads_num_heads": 4,
        "extra_heads_dim": 6,
        "conditioners": {},
        "cross_attention": False,
        "model_id": {"sig": "random", "epoch": 0},
        "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
        "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
        "model_type": "stt",
        "moshi_name": "model.safetensors",
        "mimi_name": "mimi.safetensors",
        "mimi_config_name": "file://mimi_config.json",
        "tokenizer_name": "tokenizer.model",
    }
