# Sourced by ./quickstart and ./test: makes .venv from the lock, once. Cheap to run again, also
# after a kill: the stamp is written last, and pip keeps what it has built and downloaded.
#
#   make_environment EXTRAS     e.g. make_environment llamacpp,evaluate

fail() {
  echo "error: $*" >&2
  exit 2
}

find_python() {
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

make_environment() {
  local extras=$1 python stamp
  python=$(find_python) ||
    fail "no Python 3.11 or newer with venv found; install it, or name one: PYTHON=/path/to/python $0"
  command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 ||
    fail "no C compiler found; install gcc and g++ (Debian: apt-get install build-essential)"

  stamp=.venv/.made-$({ cat requirements.lock pyproject.toml; echo "$extras"; } | cksum | tr ' ' -)
  if [ -f "$stamp" ]; then
    return
  fi
  # A kill while the folder was being made leaves a Python without pip: such a one is made again.
  .venv/bin/python -m pip --version >/dev/null 2>&1 ||
    "$python" -m venv --clear .venv || fail "could not make .venv with $python"
  echo "setting up .venv (first time: about 7 minutes, most of it building llama.cpp) ..." >&2
  # Only the library of llama.cpp is used; its tools, tests and server would double the build.
  local off option
  off=""
  for option in LLAVA_BUILD MTMD_BUILD LLAMA_BUILD_COMMON LLAMA_BUILD_TOOLS LLAMA_BUILD_TESTS \
    LLAMA_BUILD_EXAMPLES LLAMA_BUILD_SERVER LLAMA_CURL; do
    off="$off -D$option=OFF"
  done
  # gcc (12 was tried) leaves the tiles' configuration unset, as if no one read it: on CPUs with AMX
  # llama.cpp then dies of an illegal instruction. Compilers for other CPUs do not know the option.
  local no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  "${CC:-$(command -v cc || command -v gcc || echo clang)}" $no_amx -E -x c /dev/null >/dev/null 2>&1 ||
    no_amx=""
  CFLAGS="${CFLAGS:-} $no_amx" CXXFLAGS="${CXXFLAGS:-} $no_amx" CMAKE_ARGS="${CMAKE_ARGS:-}$off" \
    .venv/bin/python -m pip install --disable-pip-version-check --quiet \
    --constraint requirements.lock --editable ".[$extras]" ||
    fail "the packages could not be installed (see above); run $0 again to go on"
  touch "$stamp"
}
