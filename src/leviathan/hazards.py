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
_SECRETS: dict[str, str] = {
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


@cache
def _searcher() -> tuple[Any, list[tuple[Hazard, re.Pattern[bytes]]]]:
    import ahocorasick_rs  # 10 GB/s for all beginnings at once; a regular expression 0.1

    known: list[tuple[Hazard, re.Pattern[bytes]]] = [
        *(("secret", re.compile(form.encode())) for form in _SECRETS.values()),
        *(("control", re.compile(form.encode())) for form in _CONTROL.values()),
    ]
    # Its search by vectors takes patterns leftmost first, and no more than 64 of them.
    kind = ahocorasick_rs.MatchKind.LeftmostFirst
    beginnings = [text.encode() for text in (*_SECRETS, *_CONTROL)]
    return ahocorasick_rs.BytesAhoCorasick(beginnings, matchkind=kind), known


def find(data: bytes) -> Iterator[tuple[int, Hazard, str]]:
    """Where a hazard begins in these lines, which one, and what it looks like.

    A secret is shown by its first characters only.
    """
    searcher, known = _searcher()
    for number, begin, end in searcher.find_matches_as_indexes(data):
        kind, form = known[number]
        found = form.match(data, begin)
        if not found:
            continue
        if kind == "secret":
            if not _inside_word(data, begin):
                yield begin, kind, f"{data[begin:end].decode().strip()}..."
        elif data[begin] != _BACKSLASH or not _escaped(data, begin):
            yield begin, kind, found[0].decode()


def _escaped(data: bytes, place: int) -> bool:
    """Whether the text itself shows a backslash here."""
    before = place
    while before and data[before - 1] == _BACKSLASH:
        before -= 1
    return (place - before) % 2 == 1


def _inside_word(data: bytes, place: int) -> bool:
    """Whether letters or digits stand right before it; an escape's letter is none of them."""
    if not place or not chr(data[place - 1]).isalnum() or data[place - 1] >= 0x80:
        return False
    return not (place > 1 and data[place - 2] == _BACKSLASH)
