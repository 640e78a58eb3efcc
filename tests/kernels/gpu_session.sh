#!/bin/bash
# Check, sanitize and measure the CUDA backend in one go on a GPU host.
#   gpu_session.sh BIN OUT COMMIT DATE [check] [sanitize] [bench]
# BIN: the build's bin folder, as built or carried. OUT: where logs and gpu.jsonl go.
here=$(dirname "$0"); bin=$1; out=$2; commit=$3; date=$4; shift 4
export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/local/cuda/lib64
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,ecc.mode.current --format=csv,noheader
result=0
for part in "$@"; do
  case $part in
    check) "$bin/tests/gpu_check" >"$out/check.log" 2>&1 || result=1
      grep -v '^ok ' "$out/check.log" | tail -60 ;;
    sanitize) for tool in memcheck racecheck; do
        timeout 280 compute-sanitizer --tool $tool --error-exitcode 1 "$bin/tests/gpu_check" --small \
          >"$out/$tool.log" 2>&1 || result=1
        echo "$tool:"; grep -E 'FAILED|passed|ERROR SUMMARY|RACECHECK SUMMARY|=========' "$out/$tool.log" | tail -12
      done ;;
    bench) timeout 100 python3 "$here/gpu_peer.py" >"$out/peer.txt" 2>"$out/peer.err"
      timeout 250 "$bin/tests/gpu_bench" --out "$out/gpu.jsonl" --commit "$commit" --date "$date" \
        --peer "$out/peer.txt" 2>&1 | tee "$out/bench.log" || result=1 ;;
  esac
done
exit $result
