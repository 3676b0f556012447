# Sourced by scripts/demo, test and check from the root of the clone: an environment in .venv (or $DIFFAUG_VENV), with
# the pinned versions of constraints.txt, installed again only when the requirements or the place of the clone change.
# Leaves $PYTHON, the environment's interpreter. Nothing here needs a home folder, a terminal or standard input.

export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONUNBUFFERED=1
exec </dev/null

VENV=${DIFFAUG_VENV:-$PWD/.venv}
PYTHON=$VENV/bin/python
STAMP=$VENV/diffaug-installed
began=$SECONDS

find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  echo "environment: found no Python 3.11 or newer with venv; install one, e.g. the packages python3 and python3-venv" >&2
  return 1
}

wanted() {
  "$PYTHON" - "$PWD" pyproject.toml constraints.txt <<'EOF'
import hashlib, pathlib, sys
parts = [sys.argv[1].encode(), sys.version.encode(), *(pathlib.Path(name).read_bytes() for name in sys.argv[2:])]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
EOF
}

install() {
  rm -f "$STAMP"
  echo "environment: installing into $VENV (a few minutes the first time)"
  "$PYTHON" -m pip install --progress-bar off --no-compile --root-user-action ignore -c constraints.txt -e '.[dev]' |
    awk '/^Collecting/ {print "  getting " $2; fflush()}
         /^Installing collected/ {print "  unpacking, which takes longest"; fflush()}'
  wanted >"$STAMP"
}

if ! "$PYTHON" -c 'import pip' >/dev/null 2>&1; then
  base=$(find_python)
  echo "environment: making $VENV with $("$base" --version)"
  "$base" -m venv --clear "$VENV"
fi
if [ ! -f "$STAMP" ] || [ "$(cat "$STAMP")" != "$(wanted)" ]; then
  install
fi
if [ ! -w "${HOME:-}" ]; then
  export HOME=$VENV/home # libraries that keep a cache there need a folder that they may write
  mkdir -p "$HOME"
fi
echo "environment: ready after $((SECONDS - began)) s"
