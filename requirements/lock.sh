#!/usr/bin/env bash
# Resolve the locks of requirements/, one for each Python and kind of machine, with the index's hashes. `make lock` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
UV=.tool/bin/uv
COMMON=(--generate-hashes --no-annotate --custom-compile-command "make lock")
WHAT=(pyproject.toml --extra all --extra serve --group demo --group dev)

links=${PIP_FIND_LINKS:-$(.tool/bin/python -m pip config get global.find-links 2>/dev/null || true)}
links=${links%%[[:space:]]*}
wheel=$(compgen -G "$links/torch-*+cpu-cp*.whl" | head -n 1) || true
for version in 3.11 3.12 3.13; do
  torch=(--torch-backend cpu)
  if [ -n "$wheel" ]; then
    # Its metadata are the same for each Python, so that one Python's wheel is enough to resolve for all.
    name=$(basename "$wheel")
    mkdir -p .tool/links
    ln -sf "$wheel" ".tool/links/${name%%-cp*}-cp${version/./}-cp${version/./}-${name##*-}"
    torch=(--find-links .tool/links)
  fi
  # The other Pythons take the versions of the first wherever they can.
  for kind in cpu gpu; do
    [ "$version" = 3.11 ] || cp "requirements/$kind-3.11.txt" "requirements/$kind-$version.txt"
  done
  # --excludes only here: the GPU build needs torchvision, torchaudio and triton.
  "$UV" pip compile -q "${WHAT[@]}" --extra cpu --excludes requirements/cpu-excludes.txt "${torch[@]}" \
    "${COMMON[@]}" --python-version "$version" -o "requirements/cpu-$version.txt"
  "$UV" pip compile -q "${WHAT[@]}" --extra gpu --python-platform x86_64-manylinux_2_28 \
    "${COMMON[@]}" --python-version "$version" -o "requirements/gpu-$version.txt"
  # torch's CPU build has no hash: it comes from wherever such a wheel is at hand, and PyTorch's own has not been compared.
  awk '/^torch==/ { sub(/ \\$/, ""); print; skip = 1; next } skip && /^ +--hash/ { next } { skip = 0; print }' \
    "requirements/cpu-$version.txt" >.tool/lock.txt
  cp .tool/lock.txt "requirements/cpu-$version.txt"
done

# boto3 wants an older python-dateutil than the lock has. The images' Python is 3.11.
grep -o '^[^ ]*==[^ ]*' requirements/gpu-3.11.txt | grep -v '^python-dateutil==' >.tool/constraints.txt
"$UV" pip compile -q requirements/aws.in -c .tool/constraints.txt "${COMMON[@]}" --python-version 3.11 \
  -o requirements/aws-3.11.txt
# What builds the website has an environment of its own.
"$UV" pip compile -q requirements/docs.in --universal "${COMMON[@]}" --python-version 3.11 -o requirements/docs.txt
