#!/usr/bin/env bash
# Installs the Debian packages that the system tests need, where they are missing.
set -euo pipefail

# command → the package that brings it. A program that is there already, from
# wherever, is left alone (a newer Node.js or Go, say).
declare -A package_of=(
  [buildah]=buildah
  [chromium]=chromium
  [debootstrap]=debootstrap
  [haproxy]=haproxy
  [go]=golang-go
  [node]=nodejs
  [setpriv]=util-linux
  [unshare]=util-linux
  [nsenter]=util-linux
  [taskset]=util-linux
  [mount]=mount
)

missing=()
for command in "${!package_of[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
# What debootstrap checks Debian's signatures with; elsewhere than on Debian it may be missing.
[[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || missing+=(debian-archive-keyring)
if ((${#missing[@]} == 0)); then
  exit 0
fi

if ((EUID != 0)); then
  echo "system_packages: needs root to install: ${missing[*]}" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "system_packages: no apt-get here; install these by other means: ${missing[*]}" >&2
  exit 1
fi

# Quiet unless it fails: then the whole log is what one wants to read.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } \
  >"$log" 2>&1; then
  cat "$log" >&2
  echo "system_packages: could not install: ${missing[*]}" >&2
  exit 1
fi
