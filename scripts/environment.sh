# shellcheck shell=bash
# Sourced by scripts/quickstart and scripts/test, from the repository root: finds Python, makes .venv, installs into it.
#
# HFTRANSFER_TORCH  the torch requirement to install; "torch==2.13.0" when unset.
#
# On Linux the default package index serves torch built for CUDA, several gigabytes with its NVIDIA packages. A machine
# without an NVIDIA GPU does better with the CPU build: offer it to pip through pip's own configuration, as a folder of
# wheels (find-links, PIP_FIND_LINKS) or as PyTorch's index of CPU wheels (extra-index-url, PIP_EXTRA_INDEX_URL). pip then
# prefers it by itself, because 2.13.0+cpu counts as newer than 2.13.0. macOS and Windows get a CPU build as it is.

say() { printf '==> %s\n' "$*"; }

is_recent_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

make_venv() {
  local candidate
  if [ -x .venv/bin/python ]; then
    is_recent_python .venv/bin/python && return
    echo "error: .venv holds a Python older than 3.11 or a broken one; remove the folder and run this again" >&2
    exit 2
  fi
  for candidate in python3.11 python3.12 python3.13 python3; do
    if is_recent_python "$candidate"; then
      say "making .venv with $("$candidate" --version)"
      "$candidate" -m venv .venv
      return
    fi
  done
  echo "error: hftransfer needs Python 3.11 or newer, found $(python3 --version 2>&1 || true); install one and run this again" >&2
  exit 2
}

# install_once NAME MESSAGE FILE PIP_ARGUMENT...: says MESSAGE and runs pip, unless the same arguments were installed in this
# .venv with the same FILE before (a stamp in .venv holds their hash).
install_once() {
  local stamp=".venv/.installed-$1" message=$2 file=$3 digest
  shift 3
  digest=$(.venv/bin/python -c \
    'import hashlib, sys; print(hashlib.sha256(repr(sys.argv[2:]).encode() + open(sys.argv[1], "rb").read()).hexdigest())' \
    "$file" "$PWD" "$@")
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ]; then
    return
  fi
  say "$message"
  .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check "$@"
  printf '%s\n' "$digest" >"$stamp"
}

# install_package NAME REQUIREMENT: the package of this folder, editable, with its dependencies; "." or ".[extra]".
install_package() {
  local torch=${HFTRANSFER_TORCH:-torch==2.13.0}
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! compgen -G '.venv/lib/python*/site-packages/torch' >/dev/null; then
    say "no NVIDIA GPU found; to spare torch's CUDA packages see the head of scripts/environment.sh"
  fi
  install_once "$1" "installing $torch and hftransfer into .venv (minutes the first time)" setup.cfg "$torch" --editable "$2"
}
