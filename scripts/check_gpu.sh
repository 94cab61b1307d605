#!/bin/sh
# What continuous integration cannot run without a GPU: all CUDA tests, and each op on small operands under
# compute-sanitizer. The last line is "N passed, N failed".
#   scripts/check_gpu.sh [build folder [folder for the logs]]
# They run side by side, one on each core as far as the GPU's free memory gives 4 GiB to each, and no longer
# than SWITCHBACK_CHECK_SECONDS (900). Products are not tuned under the sanitizer (that would run hundreds of
# cuBLASLt's candidates), and choices of tuning that were timed beside other programs are thrown away.
#
# racecheck does not follow all barriers that a kernel of cuBLASLt waits on and reports races in it (nvjet_*).
# So of its reports those that name a kernel of ours (all are in namespace switchback) or no kernel at all
# count; what it says of others' kernels is listed only. initcheck does not see what cuBLASLt's kernels store:
# for it alone their results are zeroed before (SWITCHBACK_GEMM_CLEAR). That all of them are written shows
# test_placement.cpp, where scratch memory is full of NaN.
set -u
limit=${SWITCHBACK_CHECK_SECONDS:-900}
if [ "${1:-}" = --one ]; then  # build folder, results' folder, "TOOL PROGRAM ARGUMENTS": one run
  build=$2 results=$3
  set -f
  set -- $4
  tool=$1 program=$2
  shift 2
  name="$tool, $program${1:+ $*}" log=$results/$tool-$program-$$ status=0 start=$(date +%s)
  export SWITCHBACK_GEMM_CACHE="$log.choices"
  if [ "$tool" = test ]; then
    timeout "$limit" "$build/tests/cuda/$program" --no-version "$@" >"$log" 2>&1 || status=$?
    words=$(grep -o 'assertions: .*' "$log" | tail -n 1)
  else
    if [ "$tool" = initcheck ]; then export SWITCHBACK_GEMM_CLEAR=1; fi
    SWITCHBACK_GEMM_TUNING=0 SWITCHBACK_TINY=1 timeout "$limit" \
      "$SANITIZER" --tool "$tool" --error-exitcode 9 --print-limit 1000 \
      "$build/tests/cuda/$program" --no-version "$@" >"$log" 2>&1 || status=$?
    words=$(grep SUMMARY "$log" | tail -n 1 | sed 's/=* *//')
    if [ "$tool" = racecheck ] && [ "$status" -eq 9 ] && grep -q 'Status: SUCCESS' "$log"; then
      foreign=$(awk '
        function close_report() { if (accesses == 0 || ours) counted++ }
        /^========= *(Error|Warning)/ { if (reports++) close_report(); accesses = ours = 0 }
        reports && / access at / {
          accesses++
          if (/switchback/) ours = 1
          else { name = $0; sub(/.* access at /, "", name); sub(/[+(].*/, "", name); others[name]++ }
        }
        END {
          if (reports) close_report()
          if (reports && !counted) for (name in others) printf " %s", name
        }' "$log")
      if [ -n "$foreign" ]; then status=0 words="$words, none of them ours:$foreign"; fi
    fi
  fi
  if ! grep -q 'test cases: *[1-9]' "$log"; then status=1 words="no test case ran"; fi
  if grep -q 'skipped: no GPU' "$log"; then status=1 words="there is no GPU"; fi
  if [ "$status" -eq 0 ]; then verdict=passed; else verdict=FAILED words="status $status, $words"; fi
  mv "$log" "$log.$verdict"
  echo "$verdict: $name, $(($(date +%s) - start)) s: $words"
  exit 0
fi

build=${1:-build}
if [ $# -gt 1 ]; then
  results=$2
  mkdir -p "$results"
  rm -f "$results"/*.passed "$results"/*.FAILED
else
  results=$(mktemp -d)
  trap 'rm -rf "$results"' EXIT
fi
SANITIZER=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
export SANITIZER
[ -n "$SANITIZER" ] || echo "compute-sanitizer is not installed: only the tests run"
jobs() {  # the longest first
  for tool in racecheck memcheck initcheck synccheck; do
    [ -n "$SANITIZER" ] || break
    for program in test_cuda test_cuda_quantize; do
      echo "$tool $program --no-skip -tc=*for?compute-sanitizer*"
    done
    echo "$tool test_gemm_bf16"
  done
  echo "test test_cuda -sf=*test_parity*"
  echo "test test_cuda -sf=*test_placement*"
  echo "test test_cuda -sfe=*test_parity*,*test_placement*"
  for program in "$build"/tests/cuda/test_*; do
    [ -x "$program" ] && [ -f "$program" ] && [ "${program##*/}" != test_cuda ] && echo "test ${program##*/}"
  done
}
at_once=$(nproc)
room=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits 2>/dev/null | head -n 1)
if [ -n "$room" ] && [ "$((room / 4096))" -lt "$at_once" ]; then at_once=$((room / 4096 + 1)); fi
jobs | tr '\n' '\0' | xargs -0 -P "$at_once" -I{} sh "$0" --one "$build" "$results" {}
for log in "$results"/*.FAILED; do
  [ -f "$log" ] || continue
  echo "== ${log##*/}"
  cat "$log"
done
passed=$(ls "$results" | grep -c 'passed$') failed=$(ls "$results" | grep -c 'FAILED$')
[ "$((passed + failed))" -eq "$(jobs | wc -l)" ] || { echo "some never ended"; failed=$((failed + 1)); }
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
