"""Owns what a notification hook is: whom it tells, of what, how often, and where that leads.

Does not send (``delivery``) nor know what happens in a run (``news``).
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

Kind = Literal[
    "finished", "stopped", "crashed", "restarted", "stalled", "oom", "budget", "disk", "heat",
    "diverged",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)

VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
# Without user:password@, which a log of the far side may show.
_URL = re.compile(r"https?://[^\s/?#@]+(?:[/?]\S*)?", re.IGNORECASE)


class Hook(BaseModel):
    """One way to tell somebody who is not looking; either ``webhook`` or ``command``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: list[Kind] = Field(list(KINDS), min_length=1)
    """What is told (docs/notifications.md); left out: everything. Not called ``on``, which
    YAML reads as true."""
    webhook: SecretStr | None = None
    """http or https URL that is sent a POST, or ``$NAME``: the environment variable that
    holds it. Such URLs are secrets: logs and records show scheme and host only."""
    body: Literal["json", "text"] = "json"
    """What is sent to a webhook: json suits Slack, Discord and programs; text suits ntfy."""
    command: list[str] | None = Field(None, min_length=1)
    """Program and arguments, run without a shell; {run}, {kind}, {text}, {step} and {host} are
    filled in. Its output is dropped; after 30 s it is killed."""
    every_min: float = Field(10.0, ge=0)
    """At most one message of each kind in so many minutes. The newest that was held back
    follows when they are over; the run's end is always told."""

    @model_validator(mode="before")
    @classmethod
    def _on_is_true(cls, given: Any) -> Any:
        if isinstance(given, dict) and True in given:
            raise ValueError("YAML reads on as true; the key is called when")
        return given

    @field_validator("webhook")
    @classmethod
    def _leads_to_the_web(cls, given: SecretStr | None) -> SecretStr | None:
        text = given.get_secret_value() if given else ""
        if given and not VARIABLE.fullmatch(text) and not _URL.fullmatch(text):
            raise ValueError("it is neither an http(s) URL nor $NAME of a variable that holds one")
        return given

    @field_validator("command")
    @classmethod
    def _has_a_program(cls, given: list[str] | None) -> list[str] | None:
        if given is not None and (not given[0].strip() or any("\0" in word for word in given)):
            raise ValueError("the first word is a program, and no word holds a NUL")
        return given

    @model_validator(mode="after")
    def _one_of_both(self) -> "Hook":
        if (self.webhook is None) == (self.command is None):
            raise ValueError("a hook has either webhook or command")
        return self


@dataclass(frozen=True)
class Target:
    """Where a hook leads, here and now."""

    label: str
    """What logs may show of it."""
    url: str = field(default="", repr=False)
    problem: str = ""
    """Why it leads nowhere, and what to do."""
    fix: str = ""


def target(hook: Hook, environment: Mapping[str, str]) -> Target:
    """Where ``hook`` leads with this environment."""
    if hook.command:
        return _program(hook.command[0], environment)
    given = hook.webhook.get_secret_value() if hook.webhook else ""
    variable = VARIABLE.fullmatch(given)
    if not variable:
        return Target(shown(given), given)
    name = variable[1] or variable[2]
    url = environment.get(name, "").strip()
    if not url:
        return Target(f"${name}", "", f"${name} is not set", f"export {name}=https://...")
    if not _URL.fullmatch(url):
        return Target(f"${name}", "", f"${name} holds no http(s) URL", f"export {name}=https://...")
    return Target(f"${name} ({shown(url)})", url)


def _program(name: str, environment: Mapping[str, str]) -> Target:
    label = f"command {name}"
    if shutil.which(name, path=environment.get("PATH")):
        return Target(label)
    return Target(label, "", f"there is no program {name}", "install it, or give its whole path")


def shown(url: str) -> str:
    """Of a URL what is no secret: scheme and host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/..."
