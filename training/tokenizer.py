"""The monologue's tokenizer: a piece for each word of the agent, letters and bytes for the rest."""

import io
import string
import struct
from pathlib import Path

import sentencepiece

from training import world
from training.sizes import END_OF_PADDING_ID, PADDING_ID

WORD_START = "▁"

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # SentencePiece's piece types
_PIECES_FIELD = 1
_WORD_SCORE, _LETTER_SCORE, _BYTE_SCORE = -1.0, -10.0, -20.0


def build_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Write a SentencePiece model to ``path`` and return it.

    A unigram model is trained on the agent's sentences; it gives the settings (normaliser, special
    ids). Its pieces are then replaced, so that each word of the agent is exactly one piece and any
    other text is spelled with letters or bytes. Ids follow Moshi: 0 end of padding, 3 padding.
    """
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(world.answers()),
        model_writer=buffer,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        unk_id=END_OF_PADDING_ID,
        bos_id=1,
        eos_id=2,
        pad_id=PADDING_ID,
        minloglevel=2,
    )
    words = {WORD_START + word: _WORD_SCORE for word in world.agent_words()}
    letters = {letter: _LETTER_SCORE for letter in WORD_START + string.ascii_letters}
    octets = {f"<0x{byte:02X}>": _BYTE_SCORE for byte in range(256)}
    pieces = [_piece("<unk>", 0.0, _UNKNOWN)]
    pieces += [_piece(name, 0.0, _CONTROL) for name in ("<s>", "</s>", "<pad>")]
    pieces += [_piece(name, score, _BYTE) for name, score in octets.items()]
    pieces += [_piece(name, score, _NORMAL) for name, score in (letters | words).items()]
    path.write_bytes(b"".join(pieces) + _without_pieces(buffer.getvalue()))
    return sentencepiece.SentencePieceProcessor(str(path))


# SentencePiece has no call to replace pieces, and its protobuf module wants a newer protobuf
# runtime than other packages allow. The wire format is simple enough to write here.


def _piece(text: str, score: float, kind: int) -> bytes:
    """One ``pieces`` entry of a ModelProto: text (1), score (2) and type (3)."""
    octets = text.encode()
    body = b"\x0a" + _varint(len(octets)) + octets
    body += b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
    return b"\x0a" + _varint(len(body)) + body


def _without_pieces(model: bytes) -> bytes:
    """The serialised ModelProto without its pieces: what is left is the settings."""
    kept, position = [], 0
    while position < len(model):
        start = position
        tag, position = _read_varint(model, position)
        assert tag & 7 == 2, "every field of a ModelProto has a length"
        length, position = _read_varint(model, position)
        position += length
        if tag >> 3 != _PIECES_FIELD:
            kept.append(model[start:position])
    return b"".join(kept)


def _varint(value: int) -> bytes:
    octets = []
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at ``position`` and the position after it."""
    value = shift = 0
    while True:
        octet = data[position]
        value |= (octet & 127) << shift
        position, shift = position + 1, shift + 7
        if octet < 128:
            return value, position
