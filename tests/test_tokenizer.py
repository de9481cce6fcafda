"""clip.tokenizer: token for token what OpenAI's gives (through open_clip's copy of it), lengths and errors."""

import hashlib
import random

import open_clip
import pytest
import torch

import clip
from clip.tokenizer import VOCABULARY, clean, encode
from monoclip import PAPER


def test_vocabulary_is_openais():
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == (
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    )


def test_tokens_are_the_released_ones(golden):
    prompts = [PAPER.depth_templates[0].format(PAPER.obj_classes[0], word) for word in PAPER.depth_classes]
    assert torch.equal(clip.tokenize(prompts), torch.from_numpy(golden["tokens"]).int())


def random_texts(count: int) -> list[str]:
    """Texts of words, numbers, entities, emoji, many scripts, white space, quotes and bytes that look broken."""
    rng = random.Random(0)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x530), (0x590, 0x700), (0x900, 0xA00), (0xE00, 0xE80)]
    ranges += [(0x1E00, 0x2100), (0x2190, 0x2800), (0x3040, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00)]
    ranges += [(0xFF00, 0xFFF0), (0x10000, 0x10100), (0x1F300, 0x1F700)]
    words = ["giant", "extremely close", "it's", "they'll", "don't", "I'VE", "Far-Away", "3.14159", "x_y", "a" * 90]
    words += ["&amp;", "&lt;b&gt;", "&amp;amp;", "&eacute;", "&#128512;", "&nbsp;", "<br/>", "\t", "\n\n", "\x00"]
    words += ["cafÃ©", "schÃ¶n", "â€œquoteâ€", "👩\u200d👩\u200d👧\u200d👦", "🇩🇪", "❤️", "naïve", "ﬁne", "ＷＩＤＥ"]
    words += ["ß", "İstanbul", "ǅ", "…", "—", "\u200b", "¼", "①", "donaudampfschifffahrtsgesellschaft" * 3]
    pieces = [rng.choice(words) for _ in range(3 * count)]
    for _ in range(2 * count):
        low, high = rng.choice(ranges)
        pieces.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 12))))
    return [rng.choice([" ", "", "  "]).join(rng.choices(pieces, k=rng.randrange(9))) for _ in range(count)]


def test_tokens_agree_with_openais_tokenizer():
    theirs = open_clip.tokenizer.SimpleTokenizer()
    texts = random_texts(2500)
    assert len(set(texts)) > 2000
    different = [text for text in texts if encode(text) != theirs.encode(text)]
    assert different == []
    # by hand, as open_clip spells them otherwise
    assert encode("<|startoftext|> a <|ENDOFTEXT|>") == [49406, 320, 49407]
    assert clean("  A &amp;lt; B\n\tC ") == "a < b c"


def test_length_limit():
    assert clip.tokenize([]).shape == (0, 77)
    assert clip.tokenize("a A")[0, :5].tolist() == [49406, 320, 320, 49407, 0]
    fits, too_long = "close " * 75, "close " * 76
    assert clip.tokenize(fits)[0, 76] == 49407
    with pytest.raises(RuntimeError, match=r"'close close .*\.\.\.' has 78 tokens .* context length of 77: shorten it"):
        clip.tokenize(["fine", too_long])
    cut = clip.tokenize(too_long, truncate=True)
    assert torch.equal(cut, clip.tokenize(fits))
    short = clip.tokenize("a a a", context_length=4, truncate=True)
    assert short.tolist() == [[49406, 320, 320, 49407]]
