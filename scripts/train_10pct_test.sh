#!/usr/bin/env bash
# 10 % of the corpus on a rented A100 80 GB. The same command again resumes.
exec leviathan train --recipe leviathan --profile a100-80gb --sample 10pct "$@"
