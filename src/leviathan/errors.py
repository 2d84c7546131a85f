"""Owns what can go wrong: one tree of errors, each with its exit code.

Does not own the printing of them (ui) nor the single place that catches them (cli).

    LeviathanError            1  failed
    ├── BadInput              2  the user's input is wrong; nothing was written
    └── Refused               3  a check says no (does not fit, unsound, unverified)

Being stopped is no error: the train command itself exits with 4, or 130 when killed.
"""


class LeviathanError(Exception):
    """A failure the user can act on: one line of what, one line of what to do.

    ``exit_code`` follows the CLI contract: 1 failed, 2 bad input, 3 refused.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def line(self) -> str:
        """What is wrong and what to do, as the user reads it."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class BadInput(LeviathanError):  # noqa: N818 - reads as what it is: raise BadInput(...)
    """What the user gave is wrong. Raised before anything is written."""

    exit_code = 2


class Refused(LeviathanError):  # noqa: N818
    """The input is well-formed but a check forbids going on."""

    exit_code = 3
