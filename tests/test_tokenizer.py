"""clip.tokenizer: token for token what OpenAI's gives (through open_clip's copy of it), lengths and errors."""

import hashlib
from itertools import product

import open_clip
import pytest
import torch

import clip
from clip.tokenizer import VOCABULARY, clean, encode
from monoclip import PAPER


def test_vocabulary_is_openais():
    sha256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == sha256


def test_tokens_are_the_released_ones(golden):
    prompts = [PAPER.depth_templates[0].format(PAPER.obj_classes[0], word) for word in PAPER.depth_classes]
    assert torch.equal(clip.tokenize(prompts), torch.from_numpy(golden["tokens"]).int())


# Texts of words, numbers, entities, emoji, white space, quotes, bytes that look broken, and many scripts.
WORDS = ["giant", "extremely close", "it's", "they'll", "don't", "I'VE", "Far-Away", "3.14159", "x_y", "a" * 90]
WORDS += ["&amp;", "&lt;b&gt;", "&amp;amp;", "&eacute;", "&#128512;", "&nbsp;", "<br/>", "\t", "\n\n", "\x00"]
WORDS += ["cafÃ©", "schÃ¶n", "â€œquoteâ€", "👩\u200d👩\u200d👧\u200d👦", "🇩🇪", "❤️", "naïve", "ﬁne", "ＷＩＤＥ"]
WORDS += ["ß", "İstanbul", "ǅ", "…", "—", "\u200b", "¼", "①", "donaudampfschifffahrtsgesellschaft" * 3]
SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x530), (0x590, 0x700), (0x900, 0xA00), (0xE00, 0xE80)]
SCRIPTS += [(0x1E00, 0x2100), (0x2190, 0x2800), (0x3040, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00)]
SCRIPTS += [(0xFF00, 0xFFF0), (0x10000, 0x10100), (0x1F300, 0x1F700)]


def test_tokens_agree_with_openais_tokenizer():
    theirs = open_clip.tokenizer.SimpleTokenizer()
    texts = [between.join(pair) for pair in product(WORDS, repeat=2) for between in ("", "  ")]
    texts += ["".join(map(chr, range(start, start + 9))) for low, high in SCRIPTS for start in range(low, high, 7)]
    assert [text for text in texts if encode(text) != theirs.encode(text)] == []
    # by hand, as open_clip spells them otherwise
    assert encode("<|startoftext|> a <|ENDOFTEXT|>") == [49406, 320, 49407]
    assert clean("  A &amp;lt; B\n\tC ") == "a < b c"


def test_length_limit():
    assert clip.tokenize([]).shape == (0, 77)
    assert clip.tokenize("a A")[0, :5].tolist() == [49406, 320, 320, 49407, 0]
    fits, too_long = "close " * 75, "close " * 76
    assert clip.tokenize(fits)[0, 76] == 49407
    with pytest.raises(RuntimeError, match=r"'close close .*' has 78 tokens .* context length of 77: shorten it"):
        clip.tokenize(["fine", too_long])
    assert torch.equal(clip.tokenize(too_long, truncate=True), clip.tokenize(fits))
    assert clip.tokenize("a a a", context_length=4, truncate=True).tolist() == [[49406, 320, 320, 49407]]
