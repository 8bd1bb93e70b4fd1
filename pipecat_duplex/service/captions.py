"""What was heard, as the frames that Pipecat's context and RTVI's clients read."""

from pipecat.frames.frames import (
    AggregatedTextFrame,
    AggregatedTextProgressFrame,
    Frame,
    LLMTextFrame,
    TTSTextFrame,
)

from pipecat_duplex.conversation.captions import Caption
from pipecat_duplex.service.frames import UnheardTextFrame

# Passed by position: Pipecat 1.13 renamed the argument.
SENTENCE, WORD = "sentence", "word"


def caption_frames(caption: Caption, *, to_context: bool, from_llm: bool = False) -> list[Frame]:
    """Return the frames of a word, or of a mark for words that were not heard.

    RTVI clients show a segment once it is announced as new, and mark it as spoken once it is
    completed. A full-duplex model knows no segment longer than a word in advance, so each word is
    announced and completed as one. The type ``sentence`` is the one that every client shows.

    Args:
        caption: The word or mark.
        to_context: Whether it belongs into the conversation's context.
        from_llm: Whether an LLM upstream has written it, as LLM text.

    Returns:
        Frames in the order in which they are to be pushed.
    """
    llm_text: list[Frame] = [] if from_llm else [LLMTextFrame(caption.text)]
    for frame in llm_text:
        frame.append_to_context = False  # pyright: ignore[reportAttributeAccessIssue]
    if caption.unheard:
        mark = UnheardTextFrame(caption.text, SENTENCE)
        mark.includes_inter_frame_spaces = True
        mark.append_to_context = to_context
        return [*llm_text, mark]
    segment = AggregatedTextFrame(caption.text.strip(), SENTENCE)
    segment.append_to_context = False
    segment.will_be_spoken = True
    spoken = TTSTextFrame(caption.text, WORD)
    spoken.will_be_spoken = True
    spoken.includes_inter_frame_spaces = True
    spoken.append_to_context = to_context
    completed = AggregatedTextProgressFrame(
        segment.id, None, segment.text, SENTENCE, segment.text, ""
    )
    return [*llm_text, segment, spoken, completed]
