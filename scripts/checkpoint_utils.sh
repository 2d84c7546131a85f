# shellcheck shell=bash
# Checkpoint helpers by the names of the checkpointing guide:
#
#   source scripts/checkpoint_utils.sh
#   list_checkpoints [RUN]              latest_checkpoint [RUN]
#   cleanup_checkpoints RUN KEEP        export_checkpoint_info RUN FILE
#
# RUN is a run's name or directory; the only run when left out.

list_checkpoints() { leviathan checkpoints list "$@"; }

latest_checkpoint() { leviathan checkpoints latest "$@"; }

cleanup_checkpoints() { leviathan checkpoints cleanup "$1" --keep "${2:-2}" "${@:3}"; }

export_checkpoint_info() {
    leviathan checkpoints list "$1" --json > "$2.tmp" && mv "$2.tmp" "$2" || { rm -f "$2.tmp"; return 1; }
}
