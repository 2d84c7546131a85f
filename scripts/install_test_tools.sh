#!/bin/sh
# What the tests drive besides Python: tmux for `leviathan watch`, a Chromium for the report, ip
# for two hosts.
# Installs with apt-get where that is allowed without asking; elsewhere says what is missing.
set -eu

missing=""
command -v tmux >/dev/null || missing="tmux"
command -v ip >/dev/null || missing="$missing iproute2"
command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
    command -v google-chrome >/dev/null || missing="$missing chromium"
[ -n "$missing" ] || exit 0

root=""
[ "$(id -u)" = 0 ] || root="sudo -n"
if command -v apt-get >/dev/null && $root true 2>/dev/null; then
    $root apt-get update -qq
    # shellcheck disable=SC2086 # one package a word
    DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $missing
else
    echo "the tests need:$(printf ' %s' $missing); install them with your system's packages" >&2
fi
