#!/usr/bin/env bash
# Start a Ray node as this platform wants it: `cluster/start.sh --head --port=6379`, `cluster/start.sh --address=HEAD:6379`.
# Arguments are those of `ray start`.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# Read, not sourced: values hold blanks, and the quotes that a shell wants, `docker run --env-file` would keep.
while IFS= read -r line; do
  case "$line" in "" | "#"*) ;; *) export "${line?}" ;; esac
done < "$here/../serve/proxy.env"

# Without it Ray starts open to everyone who reaches its ports, unless a token happens to lie in ~/.ray.
export RAY_AUTH_MODE=token

# An empty directory: Ray's workers import what lies where `ray start` was called, before the code that was deployed.
cd "$(mktemp -d -p "${RAY_TMPDIR:-${TMPDIR:-/tmp}}")"
exec ray start "$@"
