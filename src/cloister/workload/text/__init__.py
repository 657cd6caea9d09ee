"""From texts to token ids with a mark on each: learned, or only read. No torch, so that a data owner can look, too.

The tour: ``messages`` (conversations from cells), ``sandbox`` (renders chat templates, which are programs),
``template`` (which one, and what of its text the assistant says), ``tokens`` (ids and marks). ``tokenizer`` and
``plain``: the same for prompts, completions and documents. ``explain`` shows it for a sample.
"""

from .explain import ExplainedToken, explain_rows
from .messages import Message, read_messages
from .plain import ENCODER_DECODERS, answer_ids, completion_ids, document_ids, encode_ids
from .template import ChatTemplate, Rendered, choose_template
from .tokenizer import SpecialTokens, end_tokens, highest_token, read_tokenizer, special_tokens
from .tokens import MarkedRow, mark_rows, stop_token

__all__ = [
    "ENCODER_DECODERS",
    "ChatTemplate",
    "ExplainedToken",
    "MarkedRow",
    "Message",
    "Rendered",
    "SpecialTokens",
    "answer_ids",
    "choose_template",
    "completion_ids",
    "document_ids",
    "encode_ids",
    "end_tokens",
    "explain_rows",
    "highest_token",
    "mark_rows",
    "read_messages",
    "read_tokenizer",
    "special_tokens",
    "stop_token",
]
