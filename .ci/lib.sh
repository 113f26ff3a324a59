# shellcheck shell=bash
# Sourced by .ci/run: the places and the tools that its steps share.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${RNNFAST_CI_DIR:-$root/build/ci}   # ignored by git
tools=$work/tools/bin

mkdir -p "$work"
# No step may import the source tree by chance instead of what it installed.
export PYTHONSAFEPATH=1
export PIP_DISABLE_PIP_VERSION_CHECK=1

die() {
    echo "error: $*" >&2
    exit 1
}

# apt PROGRAM PACKAGE...: installs Debian packages where a program is missing.
apt() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return
    local sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    command -v "$program" >/dev/null || die "$program is still missing after installing $*"
}

# The programs of requirements.txt, installed anew when that file has changed.
make_tools() {
    local wanted
    wanted=$(sha256sum <"$root/.ci/requirements.txt")
    [ "$(cat "$tools/.done" 2>/dev/null)" != "$wanted" ] || return 0
    apt g++ g++
    python3 -m venv --clear "$work/tools"
    "$tools/pip" install -q -r "$root/.ci/requirements.txt"
    echo "$wanted" >"$tools/.done"
}

# make_source FOLDER: what git would commit, a clean checkout of the tree as it stands.
make_source() {
    rm -rf "$1"
    mkdir -p "$1"
    (cd "$root" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ -e "$file" ] && printf '%s\0' "$file"; done |
        tar --null --files-from=- --create --file=-) | tar -x -C "$1"
}

# readme_block HEADING: the first fenced block under that heading of README.
readme_block() {
    local block
    block=$(awk -v heading="$1" '
        !block && /^#+ /{title = $0; sub(/^#+ +/, "", title); sub(/ +$/, "", title)}
        title == heading && /^```/{if (block) exit; block = 1; next}
        title == heading && block' "$root/README.md")
    [ -n "$block" ] || die "README.md has no fenced block under a heading \"$1\""
    echo "$block"
}

# run_readme_block HEADING FOLDER: runs that block in a clean checkout in FOLDER, with a compiler
# that must work.
run_readme_block() {
    local command
    command=$(readme_block "$1")
    apt g++ g++
    make_source "$2"
    echo "$command"
    (cd "$2" && RNNFAST_REQUIRE_NATIVE=1 bash -euo pipefail -c "$command" </dev/null)
}

# at_most NUMBER LIMIT: whether NUMBER is one, and not above LIMIT.
at_most() {
    awk -v number="$1" -v limit="$2" \
        'BEGIN {exit !(number ~ /^[0-9]+(\.[0-9]+)?$/ && number + 0 <= limit + 0)}'
}

# build_kernel_test NAME CMAKE_ARG...: builds csrc/tests and runs them.
build_kernel_test() {
    make_tools
    local build=$work/$1
    shift
    rm -rf "$build"
    "$tools/cmake" -S "$root" -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$tools/ninja" \
        -DRNNFAST_PYTHON=OFF -DRNNFAST_BUILD_TESTS=ON -DRNNFAST_WERROR=ON "$@"
    "$tools/cmake" --build "$build"
    "$tools/ctest" --test-dir "$build" --output-on-failure --no-tests=error
}
