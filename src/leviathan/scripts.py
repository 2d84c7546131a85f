"""Owns the shell scripts of a bundle: setting up, training, and driving both over ssh.

Every word that comes from a user's file or option is quoted by ``shlex``; what a script is
called with is quoted by the script (``printf %q``). shellcheck finds nothing in them.
"""

import shlex
from dataclasses import dataclass

from leviathan import bundle, checkpoints, labels
from leviathan.export import Carried, Export

KEEP_VARIABLE = "LEVIATHAN_KEEP"
"""A directory that outlives the machine: the run is kept there, and taken from there."""
VENV_VARIABLE = "LEVIATHAN_VENV"
"""An environment that is there already, instead of one made by setup.sh."""

_BEGIN = """\
#!/usr/bin/env bash
# {what}
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"
"""


def setup(export: Export, wheel: str) -> str:
    """setup.sh: an environment with what this run was trained with; again, it does nothing."""
    python = ".".join(export.versions.get("python", "3.11").split(".")[:2])
    flash = export.versions.get("flash-attn")
    pin = f"flash-attn=={flash}" if flash else "flash-attn>=2.8"
    attention = str(export.config.tree.get("attn_implementation", ""))
    optional = _FLASH.format(pin=shlex.quote(pin)) if attention.startswith("flash") else ""
    return _BEGIN.format(what="Makes .venv here; does nothing where it is made already.") + (
        _SETUP.format(
            venv=VENV_VARIABLE, wheel=shlex.quote(f"./{wheel}"), python=shlex.quote(python),
            optional=optional,
        )
    )  # fmt: skip


_SETUP = """\
if [[ -n ${{{venv}:-}} ]]; then # an environment that is here already
    exec "${venv}/bin/leviathan" --version
fi
wanted=$(sha256sum requirements.txt torch.txt {wheel})
if [[ -f .venv/.made-of && $(<.venv/.made-of) == "$wanted" ]]; then
    exec .venv/bin/leviathan --version
fi
python=$(command -v python{python} || command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later, please")'
"$python" -m venv .venv
pip=(.venv/bin/python -m pip install --disable-pip-version-check --quiet)
# torch first: with it in place nothing else pulls in another build of it. Another CUDA build:
# PIP_EXTRA_INDEX_URL=... bash setup.sh
"${{pip[@]}}" -r torch.txt
"${{pip[@]}}" -r requirements.txt {wheel}
{optional}printf '%s' "$wanted" >.venv/.made-of
.venv/bin/leviathan --version
"""

_FLASH = """\
# Faster; without it the profile's attention falls back to sdpa.
"${{pip[@]}}" setuptools wheel ninja packaging
"${{pip[@]}}" --no-build-isolation {pin} || echo "flash-attn was not built; going on with sdpa" >&2
"""


def run(export: Export) -> str:
    """run.sh: begin or go on with the run, in this terminal or in tmux; look at it; stop it."""
    words = export.command[1:]
    lines = [f"    {shlex.join(words[:1])}"]
    lines += [f"    {shlex.quote(word)}" for word in words[1:]]
    return _BEGIN.format(what="train (the default), start, status, log, attach, stop") + (
        _RUN.format(
            command="\n".join(lines), session=labels.label(export.run, 60), venv=VENV_VARIABLE,
            keep=KEEP_VARIABLE, run=shlex.quote(export.run),
            training=shlex.quote(f"work/training/{export.run}"),
        )
    )  # fmt: skip


_RUN = """\
leviathan=${{{venv}:-.venv}}/bin/leviathan
export AXOLOTL_DO_NOT_TRACK=${{AXOLOTL_DO_NOT_TRACK:-1}}
session={session}
# A tmux server of its own: it has this shell's environment, not that of an older server.
tmux=(tmux -L "$session")
command=(
{command}
)
verb=${{1:-train}}
[[ $# == 0 ]] || shift
case $verb in
train) # the same command again goes on from the newest sound checkpoint
    if [[ -n ${{{keep}:-}} ]]; then
        exec "$leviathan" cloud keep {run} --in "${keep}" -- "$leviathan" "${{command[@]}}" "$@"
    fi
    exec "$leviathan" "${{command[@]}}" "$@"
    ;;
start)
    if "${{tmux[@]}}" has-session 2>/dev/null; then
        echo "already running; bash run.sh attach shows it"
        exit 0
    fi
    mkdir -p work
    "${{tmux[@]}}" new-session -d -s "$session" bash run.sh logged "$@"
    echo "started in tmux; bash run.sh attach shows it"
    ;;
logged) # Ctrl+C in tmux is training's: tee stays to hear how it ends
    set +e
    bash run.sh train "$@" 2>&1 | tee -i -a work/run.log
    code=${{PIPESTATUS[0]}}
    echo "ended with exit code $code" | tee -a work/run.log
    exit "$code"
    ;;
status)
    state=ended
    ! "${{tmux[@]}}" has-session 2>/dev/null || state=running
    echo "tmux: $state"
    [[ ! -f work/run.log ]] || tail -n 3 work/run.log
    [[ ! -f {training}/run.json ]] || exec "$leviathan" status {run} "$@"
    ;;
log) exec tail -n 100 -f work/run.log ;;
attach) exec "${{tmux[@]}}" attach ;;
stop) exec "$leviathan" stop {run} "$@" ;; # saves first; run.sh goes on from there
*)
    echo "run.sh: $verb is none of train, start, status, log, attach, stop" >&2
    exit 2
    ;;
esac
"""


@dataclass(frozen=True)
class Host:
    """Where ``remote.sh`` goes, unless its arguments say otherwise."""

    host: str = ""
    """USER@HOST, or a name of ~/.ssh/config."""
    port: int | None = None
    key: str = ""
    """File of the private key; empty: ssh's own choice."""
    directory: str = ""
    """There; relative to the home directory."""


def remote(export: Export, host: Host, listed: tuple[Carried, ...]) -> str:
    """remote.sh: the bundle's verbs from this machine, by ssh and rsync.

    ``listed`` is what the bundle does not hold, and is sent from where it lies.
    """
    what = "push, setup, start, status, log, stop, pull: the run on a machine reached by ssh"
    return _BEGIN.format(what=what).replace(
        "cd -- ", 'called_in=$PWD\ncd -- '
    ) + _REMOTE.format(
        host=shlex.quote(host.host), port=host.port or "''", key=shlex.quote(host.key),
        directory=shlex.quote(host.directory or f"leviathan/{labels.label(export.run)}"),
        sends="\n".join(f"    {line}" for line in _sends(listed)) or "    : # all of it is here",
        training=shlex.quote(f"work/training/{export.run}"), run=shlex.quote(export.run),
        commit=checkpoints.COMMIT, manifest=bundle.MANIFEST,
    )  # fmt: skip


def _sends(listed: tuple[Carried, ...]) -> list[str]:
    """Calls of ``below``, for all that lies as it will lie there, and of ``send`` for the rest."""
    below: dict[str, list[str]] = {}
    rest: list[Carried] = []
    for one in listed:
        base, found, nothing = str(one.source).rpartition(f"/{one.name}")
        if found and not nothing:
            below.setdefault(base, []).append(one.name)
        else:
            rest.append(one)
    lines = [shlex.join(["below", base, *names]) for base, names in below.items()]
    if rest:
        folders = sorted({one.name.rpartition("/")[0] or "." for one in rest})
        lines.append(shlex.join(["there", "mkdir", "-p", "--", *folders]))
    return lines + [shlex.join(["send", str(one.source), one.name]) for one in rest]


_REMOTE = """\
if [[ ${{1:-}} == --ssh ]]; then # rsync's way to the host: it cannot quote a key's name itself
    shift
    options=(-o ServerAliveInterval=30)
    [[ -z ${{REMOTE_PORT:-}} ]] || options+=(-p "$REMOTE_PORT")
    [[ -z ${{REMOTE_KEY:-}} ]] || options+=(-o IdentitiesOnly=yes -i "$REMOTE_KEY")
    [[ -z ${{REMOTE_CONFIG:-}} ]] || options=(-F "$REMOTE_CONFIG" "${{options[@]}}")
    exec ssh "${{options[@]}}" "$@"
fi
host={host} port={port} key={key} directory={directory} venv=''
usage="usage: remote.sh VERB [--host USER@HOST] [--port N] [--key FILE] [--dir DIR] [--venv DIR]
    [-- ARGUMENTS]
verbs: push setup start status log stop pull; start may take options of leviathan train
--dir is the bundle's directory there, --venv an environment there to use instead of our own"
verb=${{1:-}}
[[ -n $verb ]] || {{ echo "$usage" >&2 && exit 2; }}
shift
while [[ $# -gt 0 && $1 != -- ]]; do
    case $1 in
    --host) host=${{2:?$usage}} ;;
    --port) port=${{2:?$usage}} ;;
    --key) key=${{2:?$usage}} ;;
    --dir) directory=${{2:?$usage}} ;;
    --venv) venv=${{2:?$usage}} ;;
    *) echo "$usage" >&2 && exit 2 ;;
    esac
    shift 2
done
[[ $# == 0 ]] || shift
if [[ -z $host || $host == -* ]]; then
    echo "remote.sh: which machine? --host USER@HOST" >&2
    exit 2
fi
case $directory in /*) ;; *) directory=./$directory ;; esac
case $key in '' | /* | '~'*) ;; *) key=$called_in/$key ;; esac
export REMOTE_PORT=$port REMOTE_KEY=$key
there() {{ # a command there, in the bundle's directory; its words arrive as they are
    local words
    printf -v words '%q ' env LEVIATHAN_VENV="$venv" "$@"
    ./remote.sh --ssh -- "$host" "cd $(printf %q "$directory") && $words"
}}
# Arguments reach the far side unread by its shell, and what was sent by halves is gone on with.
rsync=(rsync --recursive --links --times --perms --protect-args --partial -e './remote.sh --ssh')
below() {{ # files that lie below a directory here as they will lie there, in one go
    local base=$1 name sources=()
    shift
    for name in "$@"; do sources+=("$base/./$name"); done
    "${{rsync[@]}}" --relative --checksum -- "${{sources[@]}}" "$host:$directory/"
}}
# shellcheck disable=SC2329 # of a bundle whose data lies elsewhere
send() {{ "${{rsync[@]}}" --checksum -- "$1" "$host:$directory/$2"; }}
case $verb in
push)
    ./remote.sh --ssh -- "$host" "mkdir -p $(printf %q "$directory")"
    # Never into work/: what has been trained there is newer than anything here.
    "${{rsync[@]}}" --exclude=/work/training --exclude=/.venv ./ "$host:$directory/"
{sends}
    echo "pushed to $host:$directory"
    ;;
setup) there bash setup.sh ;;
start | status | log | stop) there bash run.sh "$verb" "$@" ;;
pull)
    into=$called_in/{training}
    sum() {{ sha256sum <"$1" | cut -d" " -f1; }}
    if [[ -e $into/run.json ]] && ! grep -qxF "$(sum "$into/run.json")" "$into/.pulled" 2>/dev/null
    then
        echo "remote.sh: $into was trained here; move it away, or pull elsewhere" >&2
        exit 3
    fi
    mkdir -p -- "$into"
    from=$host:$directory/{training}/
    # A checkpoint counts by its commit record (names, sizes, hashes): those come last, so that
    # what is cut off, or removed there meanwhile (24), is half a checkpoint that nobody takes.
    skip=(--exclude=/prepared --exclude=/.prepared --exclude='/.*' --exclude=.phase.json)
    skip+=(--exclude=/run.json)  # last of all, and noted: by it the next pull knows its own
    for records in exclude include; do
        code=0
        "${{rsync[@]}}" "${{skip[@]}}" "--$records={commit}" "$from" "$into/" || code=$?
        [[ $code == 0 || $code == 24 ]] || exit "$code"
    done
    "${{rsync[@]}}" -- "${{from}}run.json" "$into/.run.json"
    sum "$into/.run.json" >>"$into/.pulled"
    mv -- "$into/.run.json" "$into/run.json"
    echo "pulled to $into; leviathan checkpoints verify {run} reads every byte"
    ;;
*) echo "$usage" >&2 && exit 2 ;;
esac
"""
