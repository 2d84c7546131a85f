"""Owns names for where not every name may stand: labels after RFC 1123.

Pure. What Kubernetes, SkyPilot and tmux call a run; its own name is ``layers.run_name``.
"""

import hashlib
import re
import unicodedata

LONGEST = 40
"""Kubernetes allows 63 characters; a JobSet and a PyTorchJob put theirs behind ours."""
_DIGEST = 8


def label(name: str, longest: int = LONGEST) -> str:
    """``name`` in lower-case letters, digits and dashes, beginning with a letter.

    Where that loses something, a part of the name's SHA-256 follows: two names never share one.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if not plain[:1].isalpha():
        plain = f"run-{plain}".strip("-")
    if plain == name and len(plain) <= longest:
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{plain[: longest - _DIGEST - 1].rstrip('-')}-{digest}"
