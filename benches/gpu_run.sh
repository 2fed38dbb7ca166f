#!/usr/bin/env bash
# All that needs a real GPU, in one call of under nine minutes that ends with a short table:
#   .gpu/run.sh [PART...]      parts: device parity capture kernels speed solver torch sanitizer
# gpu_pack.sh lays it beside the binaries. Each part has a limit; none runs past the whole's (LIMIT
# seconds). Logs stay in the folder OUT. Fails if parity, capture or a bench fails.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(mktemp -d)}
limit=${LIMIT:-520}
parts=" ${*:-device parity capture kernels speed solver torch sanitizer} "
failed=0

unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
# where xz is missing, Python has its own
tar -C "$unpacked" -xJf "$here/bin.tar.xz" || python3 -m tarfile -e "$here/bin.tar.xz" "$unpacked" || exit 1
bin=$unpacked/bin

export GPU_REQUIRED=1 RUST_BACKTRACE=1
# the driver compiles the PTX once; the parts share the result
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$out/jit} CUDA_CACHE_MAXSIZE=1073741824

# run NAME SECONDS LOG COMMAND...: bounded by both limits, its end kept for the table
run() {
  local name=$1 most=$2 log=$out/$3 began=$SECONDS verdict rc
  shift 3
  ((most > limit - SECONDS)) && most=$((limit - SECONDS))
  printf '\n== %s (at %s s, at most %s s)\n' "$name" "$SECONDS" "$most"
  if ((most < 5)); then
    rc=124 verdict="no time left"
  else
    timeout --kill-after=5 "$most" "$@" >>"$log" 2>&1
    rc=$?
    case $rc in
      0) verdict=ok ;;
      124 | 137) verdict="stopped after $most s" ;;
      *) verdict="FAILED ($rc)" ;;
    esac
  fi
  [ $rc -eq 0 ] || tail -n 40 "$log"
  printf '%s\t%s\t%s\n' "$name" "$verdict" $((SECONDS - began)) >>"$out/parts.tsv"
  return $rc
}
# a part that is asked for and whose failure is the script's
must() {
  [[ $parts == *" $1 "* ]] || return 0
  run "$@" || failed=1
}
# tests ARGUMENT...: all test binaries, each with these
tests() {
  local rc=0 file
  for file in "$bin"/test-*; do
    echo "== ${file##*/}"
    "$file" "$@" || rc=1
  done
  return $rc
}
export -f tests
export bin
skip() { printf '%s\t%s\t0\n' "$1" "$2" >>"$out/parts.tsv"; }

must device 60 device.log "$bin/bin-cotangent" devices
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
must parity 150 parity.log bash -c 'tests --skip captur'
must capture 50 capture.log bash -c 'tests captur'
must kernels 90 kernels.jsonl "$bin/bench-kernels" --device cuda --json
must speed 110 speed.jsonl "$bin/bench-speed" --device cuda --json
must solver 60 solver.log "$bin/example-cpu_vs_gpu" --data embedded --train-samples 2000

if [[ $parts == *" torch "* ]]; then
  if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    run "torch eager" 60 torch.jsonl python3 "$here/torch_cases.py" --mode eager
    run "torch amp" 50 torch.jsonl python3 "$here/torch_cases.py" --mode amp
    run "torch compile" 90 torch.jsonl python3 "$here/torch_cases.py" --mode compile
  else
    skip torch "not there"
  fi
fi

# a hundred times slower than the plain run: what the time allows, of one op of each kind
if [[ $parts == *" sanitizer "* ]]; then
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      COTANGENT_CASES=${COTANGENT_CASES:-add,relu,sum,matmul,conv2d,max_pool2d,batch_norm,layer_norm,cross_entropy,gather} \
        run $tool 80 $tool.log compute-sanitizer --tool $tool --error-exitcode 9 \
        "$bin/test-cuda" --test-threads 1
      [ $? -ne 9 ] || failed=1
    done
  else
    skip sanitizer "not there"
  fi
fi

rm -rf "$out/jit"
echo
if command -v python3 >/dev/null; then
  python3 "$here/gpu_table.py" "$out" | tee "$out/table.txt"
else
  cat "$out/parts.tsv" "$out"/*.jsonl
fi
exit $failed
