#!/bin/sh
# What continuous integration cannot run without a GPU: all CUDA tests, then each op on small operands under
# compute-sanitizer. The last line is "N passed, N failed".
#   scripts/check_gpu.sh [build folder]
set -u
build=${1:-build}
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
judge() { # what, status
  if [ "$2" -eq 0 ]; then
    passed=$((passed + 1)); echo "passed: $1"
  else
    failed=$((failed + 1)); cat "$log"; echo "FAILED: $1 (status $2)"
  fi
}
for program in "$build"/tests/cuda/test_*; do
  [ -x "$program" ] && [ -f "$program" ] || continue
  status=0
  "$program" --no-version >"$log" 2>&1 || status=$?
  judge "${program##*/}: $(grep -o 'assertions: .*' "$log" | tail -n 1)" "$status"
done
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
[ -n "$sanitizer" ] || { echo "compute-sanitizer is not installed: only the tests ran"; }
for tool in memcheck racecheck initcheck synccheck; do
  [ -n "$sanitizer" ] || break
  # Tuning would run hundreds of cuBLASLt's candidates under the tool.
  for program in test_cuda test_cuda_quantize; do
    status=0
    SWITCHBACK_GEMM_TUNING=0 "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
      "$build/tests/cuda/$program" --no-version --no-skip -tc='each op once*' >"$log" 2>&1 || status=$?
    judge "$tool, $program: $(grep 'SUMMARY' "$log" | tail -n 1 | sed 's/=* *//')" "$status"
  done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
