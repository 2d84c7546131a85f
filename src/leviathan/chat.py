"""Owns a conversation: what was said, who speaks, and the commands that change it.

Knows no terminal (``ui_chat``) and no model (``interview``).
"""

from dataclasses import dataclass, field
from typing import Literal

from leviathan.errors import BadInput

Voice = Literal["tuned", "base", "both"]

HELP = (
    ("/base, /tuned, /both", "the adapter off, on, or both answers one after the other"),
    ("/system TEXT", "a system message from here on; without TEXT none. Forgets what was said"),
    ("/reset", "forgets what was said"),
    ("/quit, Ctrl+D", "ends; Ctrl+C ends an answer"),
)


@dataclass
class Chat:
    """One conversation."""

    has_base: bool
    """The adapter can be switched off."""
    remembers: bool
    """Earlier turns can be told again; else each question stands for itself."""
    system: str = ""
    voice: Voice = "tuned"
    turns: list[dict[str, str]] = field(default_factory=list)
    ended: bool = False

    @property
    def voices(self) -> tuple[bool, ...]:
        """Who answers the next question, in order; True is the base."""
        return {"tuned": (False,), "base": (True,), "both": (False, True)}[self.voice]

    def asked(self, question: str) -> list[dict[str, str]]:
        """All messages that the question makes, the earlier ones with it."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns, {"role": "user", "content": question}]

    def keep(self, question: str, answer: str) -> None:
        """Remember a turn; where both answer, the tuned model's answer is the one that counts."""
        if self.remembers:
            self.turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]

    def command(self, line: str) -> str:
        """Do what a line that begins with / says; a line that tells what was done.

        Raises:
            BadInput: there is no such command, or it makes no sense here.
        """
        name, _, rest = line[1:].strip().partition(" ")
        if name in {"quit", "exit"}:
            self.ended = True
            return ""
        if name in {"base", "tuned", "both"}:
            return self._switch(name)
        if name == "reset":
            self.turns.clear()
            return "forgot what was said"
        if name == "system":
            return self._instruct(rest.strip())
        if name == "help":
            return "\n".join(f"{usage:<22}{meaning}" for usage, meaning in HELP)
        raise BadInput(f"/{name} is no command", "/help lists them; a space before / asks it")

    def _switch(self, name: str) -> str:
        if name != "tuned" and not self.has_base:
            raise BadInput("there is no adapter to switch off", "infer RUN has both")
        self.voice = "base" if name == "base" else "both" if name == "both" else "tuned"
        return {"base": "the base model answers", "tuned": "the tuned model answers",
                "both": "both answer; the tuned model's answer is remembered"}[name]  # fmt: skip

    def _instruct(self, text: str) -> str:
        if text and not self.remembers:
            raise BadInput(
                "the model has no chat template: no system message", "ask it all at once"
            )
        self.system = text
        self.turns.clear()
        return f"system: {text}" if text else "no system message"
