#!/usr/bin/env bash
# 10 % of the corpus on the RTX A4000. The same command again resumes.
# Options go on to the CLI: scripts/train_10pct_a4000.sh --dry-run
exec leviathan train --recipe leviathan --profile a4000 --sample 10pct "$@"
