"""CLIP's tokenizer: byte-level byte-pair encoding of lower-cased text.

A pattern cuts the text into words, digits and runs of other characters; the UTF-8 bytes of each piece are merged in the
order of `bpe_simple_vocab_16e6.txt.gz` (MIT, Copyright (c) 2021 OpenAI; see NOTICE).
"""

import gzip
import html
from functools import cache
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
MERGES = 49152 - 256 - 2  # 49,408 ids less 256 bytes, 256 bytes that end a word, and two special tokens
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
PIECES = regex.compile(
    rf"{regex.escape(START)}|{regex.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)
# A printable character for each of the 256 bytes: itself where it is printable, else one from U+0100 on.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_ENCODER = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}


def clean(text: str) -> str:
    """`text` repaired, unescaped (twice: entities are often escaped themselves), on one line and in lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


class TooLongError(RuntimeError):
    """A text has more tokens than a CLIP can take; the message names it."""


@cache
def vocabulary() -> tuple[dict[str, int], dict[tuple[str, ...], int]]:
    """Ids of tokens, and ranks of the pairs of tokens that are merged, the first one's the lowest."""
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]  # the first line is a version
    alphabet = list(BYTE_ENCODER.values())
    tokens = alphabet + [c + WORD_END for c in alphabet] + ["".join(pair) for pair in merges] + [START, END]
    return {token: i for i, token in enumerate(tokens)}, {pair: rank for rank, pair in enumerate(merges)}


def merge(piece: str) -> list[str]:
    """The tokens of one piece (of characters that stand for bytes): the best-ranked pair is merged until none is."""
    ranks, parts = vocabulary()[1], [*piece[:-1], piece[-1] + WORD_END]
    while len(parts) > 1:
        found = [ranks.get(pair, MERGES) for pair in pairwise(parts)]
        if (best := min(found)) == MERGES:
            break
        i = found.index(best)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return parts


def encode(text: str) -> list[int]:
    """Ids of `text`, all below 49,408, without start and end token."""
    tokens: list[str] = []
    for piece in PIECES.findall(clean(text)):
        tokens += [piece] if piece in (START, END) else merge("".join(BYTE_ENCODER[byte] for byte in piece.encode()))
    return [vocabulary()[0][token] for token in tokens]


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Token ids with start and end token, padded with 0: one text or B -> (B, L) int32, L the `context_length`.

    Raises TooLongError: a text has more than L - 2 tokens (OpenAI's: RuntimeError). With `truncate` it is cut instead.
    """
    texts = [texts] if isinstance(texts, str) else texts
    start, end = (vocabulary()[0][token] for token in (START, END))
    result = torch.zeros(len(texts), context_length, dtype=torch.int32)
    for row, text in zip(result, texts, strict=True):
        ids = [start, *encode(text)]
        if len(ids) >= context_length and not truncate:
            tokens = f"{len(ids) + 1} tokens with start and end, more than the context length of {context_length}"
            raise TooLongError(f"text {text[:60]!r} has {tokens}: shorten it")
        ids = [*ids[: context_length - 1], end]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return result
