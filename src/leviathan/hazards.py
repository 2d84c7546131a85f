"""Owns what should not be trained on wherever it stands: secrets and control characters.

Looks at raw JSON lines. Obvious secrets only: forms that their makers document and nothing
else has; whoever needs more runs a scanner made for it. docs/data.md lists them.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

Hazard = Literal["secret", "control"]

# What a form begins with -> all of it, tried where it begins. (?![...]): and nothing more.
SECRETS: dict[str, str] = {
    # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    "AKIA": r"AKIA[A-Z2-7]{16}(?![A-Za-z0-9])",
    "ASIA": r"ASIA[A-Z2-7]{16}(?![A-Za-z0-9])",
    # github.blog, Behind GitHub's new authentication token formats
    **{f"gh{kind}_": rf"gh{kind}_[A-Za-z0-9]{{36,251}}(?![A-Za-z0-9])" for kind in "pousr"},
    "github_pat_": r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?![A-Za-z0-9])",
    "glpat-": r"glpat-[A-Za-z0-9_-]{20,}",
    # huggingface.co/docs/hub/security-tokens
    "hf_": r"hf_[A-Za-z0-9]{34,}(?![A-Za-z0-9])",
    "sk-ant-": r"sk-ant-[A-Za-z0-9_-]{32,}",
    "sk-proj-": r"sk-proj-[A-Za-z0-9_-]{32,}",
    "sk_live_": r"sk_live_[A-Za-z0-9]{24,}",
    "rk_live_": r"rk_live_[A-Za-z0-9]{24,}",
    # api.slack.com/authentication/token-types
    **{f"xox{kind}-": rf"xox{kind}-[0-9A-Za-z-]{{24,}}" for kind in "abprs"},
    "AIza": r"AIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])",
    "npm_": r"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])",
    "pypi-AgE": r"pypi-AgE[A-Za-z0-9_-]{50,}",
    # RFC 7468; in JSON its line breaks are escapes
    "-----BEGIN ": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:\\[nr]|\s)*[A-Za-z0-9+/=]{16}",
    # RFC 7519: two JSON objects in base64url and a signature
    "eyJ": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
}
# Escapes of control characters but tab, line feed and carriage return, and U+FFFD, which
# stands where text was decoded wrongly. Unescaped control characters are no JSON.
_CONTROL = {
    "\\u000": r"\\u000[0-8bceBCEfF]",
    "\\u001": r"\\u001[0-9a-fA-F]",
    "\\u007": r"\\u007[fF]",
    "\\ufffd": r"\\ufffd",
    "\\uFFFD": r"\\uFFFD",
    "\N{REPLACEMENT CHARACTER}": "\N{REPLACEMENT CHARACTER}",
}
_BACKSLASH = ord("\\")
_AT_ONCE = 16  # two searches for half as many each are faster than one for all


@cache
def _searchers() -> list[tuple[Any, list[tuple[Hazard, re.Pattern[bytes]]]]]:
    import ahocorasick_rs  # GB/s for all beginnings at once; a regular expression takes 0.1 GB/s

    known: list[tuple[str, Hazard, str]] = [
        *((begin, "secret", form) for begin, form in SECRETS.items()),
        *((begin, "control", form) for begin, form in _CONTROL.items()),
    ]
    made = []
    for start in range(0, len(known), _AT_ONCE):
        some = known[start : start + _AT_ONCE]
        # Leftmost first, as its search by vectors needs it.
        searcher = ahocorasick_rs.BytesAhoCorasick(
            [begin.encode() for begin, _, _ in some],
            matchkind=ahocorasick_rs.MatchKind.LeftmostFirst,
        )
        made.append((searcher, [(kind, re.compile(form.encode())) for _, kind, form in some]))
    return made


def find(data: bytes) -> list[tuple[int, Hazard, str]]:
    """Where each hazard begins in these lines, which one, and what it looks like; in order.

    A secret is shown by its first characters only.
    """
    return sorted(hit for searcher, known in _searchers() for hit in _found(data, searcher, known))


def _found(
    data: bytes, searcher: Any, known: list[tuple[Hazard, re.Pattern[bytes]]]
) -> Iterator[tuple[int, Hazard, str]]:
    for number, begin, end in searcher.find_matches_as_indexes(data):
        kind, form = known[number]
        found = form.match(data, begin)
        if not found:
            continue
        if kind == "secret":
            if not _inside_word(data, begin):
                yield begin, kind, f"{data[begin:end].decode().strip()}..."
        elif data[begin] != _BACKSLASH or not escaped(data, begin):
            yield begin, kind, found[0].decode()


def escaped(data: bytes, place: int) -> bool:
    """Whether the backslash here is the second of a pair: the text itself shows one."""
    before = place
    while before and data[before - 1] == _BACKSLASH:
        before -= 1
    return (place - before) % 2 == 1


def _inside_word(data: bytes, place: int) -> bool:
    """Whether letters or digits stand right before it; an escape's letter is none of them."""
    if not place or not chr(data[place - 1]).isalnum() or data[place - 1] >= 0x80:
        return False
    return not (place > 1 and data[place - 2] == _BACKSLASH)
