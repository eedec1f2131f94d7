#!/usr/bin/env bash
# Install this checkout's environment: a Python that is here (uv fetches one where there is none), and the lock that fits
# that Python and this machine. `make setup` calls it. Where nothing has changed, it ends at once.
# usage: [PYTHON=python3.12] [ACCELERATOR=cpu|gpu] requirements/setup.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=$1
UV=.tool/bin/uv
# In this order: all tests ran with the first.
VERSIONS="3.11 3.12 3.13"
# CUDA 13, which the GPU locks are for, needs this driver or a newer one.
OLDEST_DRIVER=580

refuse() {
  echo "$1" >&2
  exit 2
}

# The lock, and its and the project's checksum, as $VENV/.ready holds them. A time would not do: git gives each clone's files new ones.
stamp() { [ -f "$1" ] && echo "$1 $(cat "$1" pyproject.toml | sha256sum | cut -d ' ' -f 1)"; }

# 3.11, of a Python.
minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

case "${ACCELERATOR:-}" in "" | cpu | gpu) ;; *) refuse "ACCELERATOR=$ACCELERATOR: it can be cpu or gpu." ;; esac
ready=$(cat "$VENV/.ready" 2>/dev/null || true)
installed=${ready%% *}
installed=$(basename "${installed:-none}" .txt)

# Which Python: the one that is named, the one that is installed, one that is here, or one that uv fetches.
python="" fetch=""
if [ -n "${PYTHON:-}" ]; then
  python=$PYTHON
  version=$(minor "$python") || refuse "PYTHON=$python does not run."
elif [ "$installed" != none ] && version=$(minor "$VENV/bin/python"); then
  python=$VENV/bin/python
else
  for version in $VERSIONS; do
    python=$("$UV" python find --system --no-project --no-python-downloads "$version" 2>/dev/null) && break
  done
  if [ -z "$python" ]; then
    version=${VERSIONS%% *} fetch=--managed-python
    python=$version
  fi
fi
[[ " $VERSIONS " == *" $version "* ]] ||
  refuse "Python $version: aqe needs one of $VERSIONS. Name one (make setup PYTHON=python3.12), or none: one is looked for."

# Which packages: as asked, as installed, or as the driver allows.
if [ -n "${ACCELERATOR:-}" ]; then
  accelerator=$ACCELERATOR why="As asked"
elif [ "$installed" != none ]; then
  accelerator=${installed%-*} why="As before"
elif gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null) && [[ $gpu == *", "* ]]; then
  gpu=${gpu%%$'\n'*}
  driver=${gpu##*, }
  if [ "${driver%%.*}" -ge "$OLDEST_DRIVER" ]; then
    accelerator=gpu why="${gpu%, *} with driver $driver (ACCELERATOR=cpu takes the packages for CPUs)"
  else
    accelerator=cpu why="${gpu%, *}, but its driver $driver is older than $OLDEST_DRIVER, which CUDA 13 needs"
    why="$why (with a newer one: make setup ACCELERATOR=gpu)"
  fi
else
  accelerator=cpu why="No NVIDIA driver answers (ACCELERATOR=gpu takes the packages for GPUs)"
fi

lock=requirements/$accelerator-$version.txt
wanted=$(stamp "$lock")
[ "$ready" = "$wanted" ] && exit 0

echo "$why: installing $lock, Python $version${fetch:+, which uv fetches}."
if [ "$installed" = none ] && [ "$accelerator" = cpu ]; then
  echo "First set-up: 1.6 GB of packages to fetch, 4 GB of disk below this directory, 2 minutes with a fast network."
  echo "The demo after it: 8 GB of memory, 2 GB of disk, some 6 minutes on two cores."
fi
[ "$(uname -sm)" = "Linux x86_64" ] || echo "The locks are made for Linux on x86_64; on $(uname -sm) nobody has tried them."

# The CPU build of torch: from pip's configured find-links where such a wheel lies there, else from PyTorch's CPU index.
torch=()
if [ "$accelerator" = cpu ]; then
  links=${PIP_FIND_LINKS:-$(.tool/bin/python -m pip config get global.find-links 2>/dev/null || true)}
  links=${links%%[[:space:]]*}
  if compgen -G "$links/torch-*+cpu-cp${version/./}-*.whl" >/dev/null; then
    torch=(--find-links "$links")
  else
    torch=(--torch-backend cpu)
  fi
fi

if [ "$python" != "$VENV/bin/python" ]; then
  keep=--allow-existing
  if there=$(minor "$VENV/bin/python") && [ "$there" != "$version" ]; then keep=--clear; fi
  "$UV" venv -q "$keep" $fetch --python "$python" "$VENV"
fi
rm -f "$VENV/.ready"
"$UV" pip sync -q --python "$VENV/bin/python" "${torch[@]}" "$lock"
# The command `aqe`, from any directory. PYTHONPATH goes before it.
"$UV" pip install -q --python "$VENV/bin/python" --no-deps --no-build-isolation -e .
"$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null 2>&1 || true
echo "$wanted" >"$VENV/.ready"
