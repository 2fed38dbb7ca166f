#!/usr/bin/env bash
# Builds what needs a GPU here, for a machine that has one and nothing else: benches/gpu_pack.sh [FOLDER]
# Lays binaries, scripts and run.sh into FOLDER (.gpu), under 60 MiB. There: .gpu/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-.gpu}
rm -rf "$out" && mkdir -p "$out/bin"

# what every host of such a card has, whatever this machine is; a folder of its own, as flags differ
export RUSTFLAGS="-C target-cpu=x86-64-v3" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/gpu
export CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=debuginfo
what=(--bench speed --bench kernels --bin cotangent --example cpu_vs_gpu)
for file in tests/cuda*.rs tests/layers.rs tests/step.rs; do what+=(--test "$(basename "$file" .rs)"); done
# the tests' feature: some of them compare the card with the emulated device
cargo build --locked --release --features emulator "${what[@]}" \
  --message-format=json-render-diagnostics >"$out/build.json"

# "test-cuda", "bench-speed" and so on
python3 - "$out/build.json" >"$out/list" <<'PY'
import json, sys

for line in open(sys.argv[1]):
    made = json.loads(line)
    if made.get("reason") == "compiler-artifact" and made.get("executable"):
        print(made["target"]["kind"][0], made["target"]["name"], made["executable"])
PY
while read -r kind name file; do cp "$file" "$out/bin/$kind-$name"; done <"$out/list"
rm "$out/build.json" "$out/list"

# nothing but the C and C++ libraries may be needed there
for file in "$out"/bin/*; do
  needs=$(objdump -p "$file" | awk '/NEEDED/ {print $2}' | grep -vE '^(libc|libm|libgcc_s|libstdc\+\+|ld-linux-x86-64)\.so' || true)
  glibc=$(objdump -T "$file" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
  printf '%-28s %5s KiB  %s %s\n' "$(basename "$file")" "$(du -k "$file" | cut -f1)" "$glibc" "$needs"
  [ -z "$needs" ] || { echo "error: it links what may be missing there" >&2; exit 1; }
done

# every one holds all PTX: a dictionary that spans them keeps it once
tar -C "$out" -c bin | xz --lzma2=preset=3,dict=256MiB >"$out/bin.tar.xz"
rm -r "$out/bin"
cp benches/gpu_run.sh "$out/run.sh"
cp benches/gpu_table.py benches/torch_cases.py "$out"
size=$(du -sm "$out" | cut -f1)
echo "$out: $size MiB"
[ "$size" -lt 60 ] || { echo "error: $out is too large to carry" >&2; exit 1; }
