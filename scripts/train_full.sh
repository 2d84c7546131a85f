#!/usr/bin/env bash
# The whole corpus on a rented A100 80 GB. The same command again resumes.
exec leviathan train --recipe leviathan --profile a100-80gb --sample full "$@"
