"""Texts that break things: ten thousand of them from a seed, each with the family it belongs to.

All are Unicode text. What is none (lone surrogates, cut UTF-8) can be written as bytes of a body only: see
`half_pairs` and `cut_utf8`.
"""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

Random = random.Random
Maker = Callable[[Random], str]

WORDS = (
    *("river", "bread", "violin", "Straße", "naïve", "Ελλάδα", "река", "عود", "שלום", "हिन्दी", "ไทย", "東京"),
    *("한국어", "﷽", "İstanbul", "ﬁne", "½", "Ⅷ", "ǅ", "ß", "ẞ", "ſ", "ƛ"),
)
SPECIAL = (
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "▁",
    "<s></s>",
    "</s><s>",
    "[CLS]",
    "[SEP]",
    "<|endoftext|>",
)
WHITE = [
    *map(
        chr, (9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 133, 160, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
    ),
    *map(chr, range(0x2000, 0x200B)),
]
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u061c\u180e\u115f\u3164\ufffc\ufffd\u2061"
BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MARKS = [chr(code) for code in (*range(0x300, 0x370), *range(0x483, 0x488), *range(0x20D0, 0x20F1))]
PEOPLE = ("👩", "👨", "🧑", "👧", "👦", "🏳️", "❤️", "🏴", "👁️")
TONES = tuple(map(chr, range(0x1F3FB, 0x1F400)))
INJECTIONS = (
    "'; DROP TABLE documents; --",
    '" OR "1"="1',
    "1; ATTACH DATABASE '/etc/passwd' AS a",
    '{"$gt": ""}',
    '{"$where": "sleep(1000)"}',
    '"}], "texts": ["other"',
    "\\u0000\\ud800",
    "\\",
    '\\"',
    "<script>alert(1)</script>",
    "<!-- <![CDATA[ ]]> &amp;&#0;&#x110000;",
    "NEAR(a b) AND NOT * OR ^",
    'a* -b "c" (d) text:e',
    "%s%n%x%d{}{0}{a.__class__}$(id)`id`",
    "${jndi:ldap://a}",
    "../../../../etc/passwd",
    "C:\\con\\nul\\aux",
    "\r\nX-Injected: 1\r\n\r\n",
    "\x1b[31m\x1b]0;title\x07",
    "=cmd|' /C calc'!A0",
    "null",
    "NaN",
    "-0",
    "1e309",
    "true",
    "undefined",
    "0x10",
    "١٢٣",
    "data: x\n\n",
    "?a=b&c=d#e",
    "%00%ff%2e%2e%2f",
)


@dataclass(frozen=True, slots=True)
class Hostile:
    """A text and what is hostile about it."""

    family: str
    text: str


@cache
def _by_category() -> dict[str, list[int]]:
    """Code points of Unicode by general category; surrogates ("Cs") are none of text's."""
    found: dict[str, list[int]] = {}
    for code in range(sys.maxunicode + 1):
        found.setdefault(unicodedata.category(chr(code)), []).append(code)
    del found["Cs"]
    return found


def _some(draw: Random, letters: str | list[str] | tuple[str, ...], most: int) -> str:
    return "".join(draw.choices(letters, k=draw.randint(1, most)))


def _sentence(draw: Random, most: int = 8) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def _sprinkled(draw: Random, letters: str | list[str]) -> str:
    text = list(_sentence(draw))
    for _ in range(draw.randint(1, 12)):
        text.insert(draw.randint(0, len(text)), draw.choice(letters))
    return "".join(text)


def _of_plane(draw: Random, plane: int) -> str:
    codes = [draw.randrange(plane << 16, (plane + 1) << 16) for _ in range(draw.randint(1, 30))]
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000) or chr(plane << 16)


def _of_category(draw: Random) -> str:
    categories = _by_category()
    name = draw.choice(sorted(categories))
    return "".join(chr(draw.choice(categories[name])) for _ in range(draw.randint(1, 30)))


def _zalgo(draw: Random) -> str:
    return "".join(letter + _some(draw, MARKS, 40) for letter in draw.choice(WORDS))


def _emoji(draw: Random) -> str:
    members = (draw.choice(PEOPLE) + draw.choice(("", *TONES)) for _ in range(draw.randint(2, 30)))
    flags = _some(draw, [chr(code) for code in range(0x1F1E6, 0x1F200)], 9)
    tags = "🏴" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng") + "\U000e007f"
    return draw.choice(("\u200d".join(members), flags, tags, "1\ufe0f\u20e3", "\u200d", "\ufe0f" * 50))


def _normal_form(draw: Random) -> str:
    return unicodedata.normalize(draw.choice(("NFC", "NFD", "NFKC", "NFKD")), _zalgo(draw) + _sentence(draw))


def _run(draw: Random) -> str:
    letter = draw.choice(
        ("a", "\u0301", "あ", "🙂", "\u200d", "<", "\\", '"', "ﷺ", "\x00", "1", "\U0010ffff")
    )
    return letter * draw.choice((2, 77, 511, 512, 513, 3000))


def _long_word(draw: Random) -> str:
    return _some(
        draw, draw.choice(("abcdefgh", "あいうえお", "กขคงจ", "אבגדה", "0123456789", "aA1_-./")), 2000
    )


def _special(draw: Random) -> str:
    return (
        "".join(draw.choice((*SPECIAL, draw.choice(WORDS), " ", "")) for _ in range(draw.randint(1, 12)))
        or "▁"
    )


def _numbers(draw: Random) -> str:
    return draw.choice(
        (f"{draw.getrandbits(300)}", f"{draw.uniform(-1, 1)!r}e{draw.randint(0, 999)}", "0" * 400)
    )


def _injected(draw: Random) -> str:
    return (
        draw.choice(("", _sentence(draw, 2)))
        + draw.choice(INJECTIONS)
        + draw.choice(("", _sentence(draw, 2)))
    )


def _around(draw: Random, edge: str) -> str:
    return draw.choice((edge + _sentence(draw), _sentence(draw) + edge, edge, edge * 9))


FAMILIES: dict[str, Maker] = {
    "NUL": lambda draw: _sprinkled(draw, "\x00"),
    "control": lambda draw: _sprinkled(draw, [chr(code) for code in (*range(1, 32), *range(127, 160))]),
    "bidi": lambda draw: _sprinkled(draw, BIDI),
    "right to left": lambda draw: _some(draw, "אבגדהוزحطيكل \u202e1a,", 60),
    "zalgo": _zalgo,
    "emoji": _emoji,
    "category": _of_category,
    **{f"plane {plane}": (lambda draw, plane=plane: _of_plane(draw, plane)) for plane in range(17)},
    "noncharacters": lambda draw: _sprinkled(draw, "\ufdd0\ufffe\uffff\U0001fffe\U0010ffff"),
    "private use": lambda draw: _sprinkled(draw, ["\ue000", "\uf8ff", "\U000f0000", "\U0010fffd"]),
    "run": _run,
    "long word": _long_word,
    "mixed scripts": lambda draw: "".join(draw.choices(WORDS, k=draw.randint(2, 40))),
    "normal form": _normal_form,
    "special tokens": _special,
    "injection": _injected,
    "white space": lambda draw: _some(draw, WHITE, 40),
    "white space inside": lambda draw: _sprinkled(draw, WHITE),
    "invisible": lambda draw: _sprinkled(draw, INVISIBLE),
    "nothing to see": lambda draw: _some(draw, INVISIBLE, 20),
    "byte order mark": lambda draw: _around(draw, "\ufeff"),
    "line separators": lambda draw: _around(draw, draw.choice("\u2028\u2029\x85\r\n\v")),
    "numbers": _numbers,
    "case": lambda draw: draw.choice((str.upper, str.lower, str.title, str.swapcase))(_sentence(draw)),
    "one letter": lambda draw: draw.choice("aß東\x00\x7f\u0301\u200d \U0010fffd"),
    "escapes": lambda draw: json.dumps(json.dumps(_sprinkled(draw, INVISIBLE + "\x00\\\""))),
}  # fmt: skip


def texts(seed: int, count: int) -> list[Hostile]:
    """So many different texts of all families in turn, in an order of the seed's."""
    draw = Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        for family, make in FAMILIES.items():
            found.setdefault(make(draw), family)
    chosen = [Hostile(family, text) for text, family in found.items()][:count]
    draw.shuffle(chosen)
    return chosen


def giants() -> list[Hostile]:
    """Texts of ten million bytes."""
    size = 10_000_000
    return [
        Hostile("10 MB of one letter", "a" * size),
        Hostile("10 MB of white space", "\u2003" * (size // 3)),
        Hostile("10 MB of one word", "水" * (size // 3)),
    ]


HALVES = (r"\ud800", r"\udfff", r"\udbff", r"\udc00\ud800", r"\ud800\ud800", r"\uD83D", r"\ud800\u0041")


def half_pairs(seed: int, count: int) -> list[bytes]:
    """JSON strings that hold half of a surrogate pair, with their quotation marks."""
    draw = Random(seed)
    return [
        json.dumps(_sentence(draw, 3))[:-1].encode()
        + draw.choice(HALVES).encode()
        + draw.choice((b'"', b' a"'))
        for _ in range(count)
    ]


def cut_utf8(seed: int, count: int) -> list[bytes]:
    """JSON strings that are no UTF-8: sequences cut, overlong, beyond Unicode, surrogates, stray bytes."""
    draw = Random(seed)
    wrong = (
        b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xbf", b"\xff", b"\xfe", b"\xc0\x80", b"\xc1\xbf",
        b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xed\xa0\x80",
        b"\xed\xbf\xbf", b"\xed\xa0\x81\xed\xb0\x80",
    )  # fmt: skip
    return [
        b'"' + _sentence(draw, 3).encode() + draw.choice(wrong) + draw.choice((b"", b"a", b" end")) + b'"'
        for _ in range(count)
    ]
