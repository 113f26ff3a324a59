# shellcheck shell=bash
# Sourced by .ci/run: the places and the tools that its steps share.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${RNNFAST_CI_DIR:-$root/build/ci}   # ignored by git
src=$work/src                            # the copy that README's test command runs in
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

make_tools() {
    [ -e "$tools/.done" ] && return
    apt g++ g++
    python3 -m venv "$work/tools"
    "$tools/pip" install -q -r "$root/.ci/requirements.txt"
    touch "$tools/.done"
}

# make_source FOLDER: what git would commit, a clean checkout of the tree as it stands.
make_source() {
    rm -rf "$1"
    mkdir -p "$1"
    (cd "$root" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ -e "$file" ] && printf '%s\0' "$file"; done |
        tar --null --files-from=- --create --file=-) | tar -x -C "$1"
}

# The commands of the first fenced block under README's heading "Tests".
readme_test_command() {
    awk '/^#+ /{here = ($0 ~ /^#+ +Tests *$/)}
         here && /^```/{if (block) exit; block = 1; next}
         here && block' "$src/README.md"
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
