#!/bin/sh
# Installs what is missing, builds, runs all tests. The last line is "N passed, N failed" (test cases), with
# ", N skipped" where tests need what this machine does not have (a GPU, a vocabulary); those are named above it.
#   scripts/test.sh [build folder]     SANITIZE=1: the same under AddressSanitizer and UndefinedBehaviorSanitizer
set -eu
cd "$(dirname "$0")/.."
sh scripts/install_packages.sh
if [ "${SANITIZE:-0}" = 1 ]; then
  build=${1:-build-sanitize}
  options="-Db_sanitize=address,undefined -Db_lundef=false -Doptimization=1 -Dcuda=disabled"  # CUDA and AddressSanitizer want the same addresses
  export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
else
  build=${1:-build}
  options=""
fi
# shellcheck disable=SC2086
[ -f "$build/build.ninja" ] || meson setup "$build" $options
ninja -C "$build"

passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for program in "$build"/tests/*/test_*; do
  [ -x "$program" ] && [ -f "$program" ] || continue
  echo "---- ${program##*/}"
  status=0
  "$program" --no-version >"$log" 2>&1 || status=$?
  summary=$(sed -n 's/^\[doctest\] test cases: *\([0-9]*\) | *\([0-9]*\) passed | *\([0-9]*\) failed | *\([0-9]*\) skipped.*/\2 \3 \4/p' "$log" | tail -n 1)
  if [ -z "$summary" ]; then  # it died
    cat "$log"
    echo "$program ended with status $status before its summary"
    failed=$((failed + 1))
    continue
  fi
  [ "$status" -eq 0 ] || cat "$log"
  grep -o 'skipped: .*' "$log" || true  # a test that needs what is not here says so, and counts as skipped
  here=$(grep -c 'skipped: ' "$log" || true)
  set -- $summary
  if [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then  # all cases passed, and then it died: of a leak, say
    echo "$program ended with status $status after its summary"
    set -- "$1" 1 "$3"
  fi
  echo "$(($1 - here)) passed, $2 failed, $((here + $3)) skipped"
  passed=$((passed + $1 - here)) failed=$((failed + $2)) skipped=$((skipped + here + $3))
done
check() {  # a script of this folder, its arguments
  name=$1
  shift
  echo "---- $name"
  python3 "scripts/$name.py" "$@" >"$log" 2>&1 || true
  summary=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed\(, \([0-9]*\) skipped\)\{0,1\}$/\1 \2 \4/p' "$log" | tail -n 1)
  # shellcheck disable=SC2086
  if [ -n "$summary" ]; then set -- $summary; else set -- 0 1; fi
  [ "$2" -eq 0 ] || cat "$log"
  grep 'skipped: ' "$log" || true
  echo "$1 passed, $2 failed, ${3:-0} skipped"
  passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + ${3:-0}))
}
if [ -d "$build/kernels/cuda" ]; then check check_kernels "$build"; fi  # the CUDA kernels' machine code
if [ "${SANITIZE:-0}" != 1 ]; then check check_lines; fi
if [ "$skipped" -gt 0 ]; then echo "$passed passed, $failed failed, $skipped skipped"
else echo "$passed passed, $failed failed"; fi
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
