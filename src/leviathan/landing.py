"""Owns what is done at the far end of a transfer, by sh: looking, staging, giving names.

Does not copy (``remote``) nor decide what travels (``transfer``). What arrives lies in a hidden
directory beside its place until it is whole; then names are changed, in an order that leaves
something sound whatever stops it.
"""

from dataclasses import dataclass

from leviathan import remote
from leviathan.errors import LeviathanError, Refused
from leviathan.remote import Place

STAGE = ".transfer-"
"""Begins the name of a directory of what has arrived so far; its end tells of what."""
_LOCKED, _OTHER, _CHANGED = 75, 76, 77

# The kernel lock that ``runs.locked`` takes; where there is no flock(1), the file its holder keeps.
_HEAD = r"""
unset CDPATH
locked() {
    [ -e "$1/.lock" ] || return 1
    command -v flock >/dev/null 2>&1 || { [ -e "$1/.lock.json" ]; return; }
    ! flock -n "$1/.lock" true
}
# A trainer that has lost its supervisor, and with it the lock, still ends its step and saves.
orphan() {
    for mark in "$1/.plugin.json" "$1/.launcher.json"; do
        pid=$(sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' "$mark" 2>/dev/null | head -n 1)
        [ -z "$pid" ] || ! grep -aq axolotl "/proc/$pid/cmdline" 2>/dev/null || return 0
    done
    return 1
}
seen() { if [ -e "$1" ]; then cksum <"$1"; else echo none; fi; }
"""

_LOOK = (
    _HEAD
    + r"""
main() {
    up=$1
    while [ ! -d "$up" ]; do up=$(dirname -- "$up"); done
    [ -w "$up" ] || echo readonly=1
    echo "free_kib=$(df -Pk "$up" | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*% .*/\1/p')"
    if [ -d "$1" ]; then echo there=1; elif [ -e "$1" ]; then echo other=1; fi
    echo "record=$(seen "$1/run.json")"
    [ ! -e "$1/metrics.jsonl" ] || echo "metrics=$(($(wc -c <"$1/metrics.jsonl")))"
    if locked "$1" || orphan "$1"; then echo locked=1; fi
    [ ! -d "$2" ] || echo "staged_kib=$(du -sk "$2" | sed 's/[^0-9].*//')"
    command -v rsync >/dev/null 2>&1 || echo norsync=1
}
"""
)

# Of transfers that nobody has gone on with for two days nothing is kept.
_PREPARE = r"""
unset CDPATH
main() {
    mkdir -p -- "$1/$2" && touch -- "$1/$2" || exit 1
    find "$1" -maxdepth 1 -name '.transfer-*' -mtime +1 ! -name "$2" -exec rm -rf {} +
}
"""

# Into a run that is there: first the record, then checkpoints; what lacks then are steps that the
# older checkpoint trains again. Into a new one: the record last, without which it is no run.
_PUBLISH_RUN = (
    _HEAD
    + r"""
lock() {
    if command -v flock >/dev/null 2>&1; then
        exec 9>>.lock
        flock -n 9 || exit 75
    elif [ -e .lock.json ]; then
        exit 75
    fi
}
# What a resume from before them left behind must not be resumed from.
rejected() {
    [ -n "$1" ] || return 0
    for old in checkpoint-*; do
        [ -d "$old" ] && [ "${old##*-}" -gt "$1" ] 2>/dev/null || continue
        mkdir -p set-aside && mv -- "$old" "set-aside/$old.$(date +%Y%m%dT%H%M%S)" || return 1
    done
}
checkpoints() {
    for arrived in "$1"/checkpoint-*; do
        [ -d "$arrived" ] || continue
        name=${arrived##*/}
        if cmp -s "$arrived/leviathan-commit.json" "$name/leviathan-commit.json"; then
            [ "$2" = replace ] || continue
        elif [ -e "$name/leviathan-commit.json" ]; then
            echo "$name"
            exit 76
        fi
        if [ -e "$name" ]; then
            aside=quarantine/$name.$(date +%Y%m%dT%H%M%S).$$
            mkdir -p quarantine && mv -- "$name" "$aside" || return 1
        fi
        mv -- "$arrived" "$name" || return 1
    done
}
told() {
    for arrived in "$1"/run/*; do
        [ "${arrived##*/}" = run.json ] || mv -f -- "$arrived" "${arrived##*/}" || return 1
    done
    mv -f -- "$1/run/run.json" run.json
}
main() {
    trap '' HUP INT TERM PIPE
    cd -- "$1" || exit 1
    lock
    ! orphan . || exit 75
    [ "$(seen run.json)" = "$3" ] || exit 77
    sync
    if [ -e run.json ]; then
        rejected "$5" && told "$2" && checkpoints "$2" "$4"
    else
        checkpoints "$2" "$4" && told "$2"
    fi || exit 1
    sync
    rm -rf -- "$2"
}
"""
)

_PUBLISH_DIRECTORY = r"""
unset CDPATH
main() {
    trap '' HUP INT TERM PIPE
    cd -- "$1" || exit 1
    [ ! -e "./$3" ] || exit 76
    sync
    mv -- "$2" "./$3" || exit 1
    sync
}
"""

_PUBLISH_FILES = r"""
unset CDPATH
main() {
    trap '' HUP INT TERM PIPE
    cd -- "$1" || exit 1
    stage=$2
    shift 2
    sync
    for name; do
        [ ! -e "./$name" ] || continue
        mkdir -p -- "$(dirname -- "./$name")" && mv -- "$stage/$name" "./$name" || exit 1
    done
    sync
    rm -rf -- "$stage"
}
"""


@dataclass(frozen=True)
class State:
    """What a place looks like before anything is sent there."""

    there: bool
    record: str
    """Tells one run.json from another; ``none`` without one."""
    metrics_bytes: int
    free_bytes: int | None
    staged_bytes: int
    """What an earlier attempt has left to go on from."""

    @property
    def is_run(self) -> bool:
        return self.record != "none"


def look(at: Place, stage: Place | None = None) -> State:
    """Look at a directory, which need not exist.

    Args:
        at: the directory.
        stage: the staging directory of what is to be written there; None: it is only read.

    Raises:
        Refused: it is to be written, and is being trained or cannot be written to.
        LeviathanError: it cannot be reached, or has no rsync.
    """
    said = remote.script(at, _LOOK, at.directory, stage.directory if stage else "")
    told = dict(line.partition("=")[::2] for line in said.splitlines())
    if "norsync" in told:
        raise LeviathanError(f"rsync is missing at {at.host or 'this machine'}",
                             "install it there: apt-get install rsync")  # fmt: skip
    if "other" in told:
        raise Refused(f"{at} is no directory")
    if stage and "readonly" in told:
        raise Refused(f"{at} cannot be written to", "name another directory, or another user")
    if stage and "locked" in told:
        raise _in_use(at)
    free = told.get("free_kib", "")
    return State(
        "there" in told, told.get("record", "none"), int(told.get("metrics") or 0),
        int(free) * 1024 if free.isdigit() else None, int(told.get("staged_kib") or 0) * 1024,
    )  # fmt: skip


def prepare(parent: Place, stage: str) -> Place:
    """Make the staging directory ``stage`` in ``parent``; it may be there already.

    Raises:
        LeviathanError: it cannot be made.
    """
    remote.script(parent, _PREPARE, parent.directory, stage)
    return parent / stage


def publish_run(
    at: Place, stage: str, record: str, *, replace: bool = False, rejected: int | None = None
) -> None:
    """Give what lies in ``stage`` of the run's directory its names, under the run's lock.

    Args:
        at: the run's directory.
        stage: with ``checkpoint-N`` and ``run``, whose files are the run's own.
        record: what ``look`` said of run.json.
        replace: a checkpoint of the same commit record, which is damaged there, goes into
            quarantine; one without a record always does.
        rejected: checkpoints behind this step are set aside: what arrives trained them anew.

    Raises:
        Refused: it is being trained, was changed meanwhile, or has another checkpoint of the name.
    """
    word = "replace" if replace else "keep"
    try:
        step = "" if rejected is None else str(rejected)
        remote.script(at, _PUBLISH_RUN, at.directory, stage, record, word, step)
    except remote.ScriptFailed as error:
        if error.code == _LOCKED:
            raise _in_use(at) from error
        if error.code == _CHANGED:
            raise Refused(f"{at} was changed meanwhile", "run the same again") from error
        if error.code == _OTHER:
            raise Refused(
                f"{at} has another {error.said}, of another training",
                "move it away there, or give this run another name",
            ) from error
        raise


def publish_directory(parent: Place, stage: str, name: str) -> None:
    """Give the staging directory its name.

    Raises:
        Refused: something has it already.
    """
    try:
        remote.script(parent, _PUBLISH_DIRECTORY, parent.directory, stage, name)
    except remote.ScriptFailed as error:
        if error.code == _OTHER:
            raise Refused(f"{parent / name} is there already") from error
        raise


def publish_files(at: Place, stage: str, names: list[str]) -> None:
    """Give files their names where nothing has them yet; their directories are made."""
    remote.script(at, _PUBLISH_FILES, at.directory, stage, *names)


_EXISTING = r"""
main() {
    cd -- "$1" 2>/dev/null || exit 0
    shift
    number=0
    for name; do
        [ ! -e "./$name" ] || echo "$number"
        number=$((number + 1))
    done
}
"""


def existing(at: Place, names: list[str]) -> set[str]:
    """Which of these files are there."""
    said = remote.script(at, _EXISTING, at.directory, *names)
    return {names[int(number)] for number in said.split()}


def _in_use(at: Place) -> Refused:
    return Refused(f"{at} is being trained there", "stop it there first; then run the same again")
