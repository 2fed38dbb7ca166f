#!/usr/bin/env bash
# sanitize.sh asan|tsan [cargo test arguments] - runs the tests of the emulated device with its kernels under
# AddressSanitizer and UBSan, or under ThreadSanitizer. Stable Rust, g++ and its sanitizer libraries. Without
# arguments: every kernel's parity tests and the planted faults.
#
# Nothing of Rust is compiled again: build.rs's own program, as cargo has compiled it, makes the kernels anew, and
# the tests load them as a library in place of those that are linked into them.
set -euo pipefail
cd "$(dirname "$0")/../.."
sanitizer=${1:?asan or tsan}
shift
case $sanitizer in
  asan) link=(-fsanitize=address,undefined) ;;
  tsan) link=(-fsanitize=thread) ;;
  *) echo "$sanitizer: asan and tsan are known" >&2 && exit 1 ;;
esac
[ $# -gt 0 ] || set -- --test cuda --test planted
test=(cargo test --locked --features emulator)

# the artifact of this package's build script
build=$("${test[@]}" --no-run --message-format=json-render-diagnostics "$@" |
  sed -nE 's/.*"package_id":"path[^"]*".*"kind":\["custom-build"\].*"filenames":\["([^"]+)".*/\1/p' | tail -1)
out=$PWD/target/sanitized/$sanitizer
mkdir -p "$out"
host=$(rustc -vV | sed -n 's/^host: //p')
export COTANGENT_SANITIZER=$sanitizer
# what cargo tells a build script, as far as ours and the cc crate ask for it
env CARGO_MANIFEST_DIR="$PWD" OUT_DIR="$out" TARGET="$host" HOST="$host" OPT_LEVEL=1 DEBUG=true NUM_JOBS="$(nproc)" \
  CARGO_CFG_TARGET_ARCH=x86_64 CARGO_CFG_TARGET_OS=linux CARGO_CFG_TARGET_ENV=gnu CARGO_CFG_TARGET_VENDOR=unknown \
  CARGO_CFG_TARGET_ABI= CARGO_CFG_TARGET_FEATURE= CARGO_ENCODED_RUSTFLAGS= CARGO_FEATURE_EMULATOR=1 "$build" >"$out/log"
# symbolic: the library's own functions and shared memory, whatever the program has of the same name
g++ -shared "${link[@]}" -Wl,-Bsymbolic -o "$out/emulator.so" \
  -Wl,--whole-archive "$out"/libcotangent_emulated_kernels.a "$out"/libcotangent_emulator.a -Wl,--no-whole-archive

export COTANGENT_EMULATOR=$out/emulator.so
# the sanitizer's library has to be there before the program; with a report it asks the first library that knows
# which kernel runs, before its own answer
runner="env LD_PRELOAD=$COTANGENT_EMULATOR:$(g++ -print-file-name="lib$sanitizer.so")"
# TSan of gcc 12 cannot place its shadow under newer kernels' address randomization
! setarch -R true 2>/dev/null || runner="setarch -R $runner"
export "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER=$runner"
# The Rust side is not instrumented: leaks are not ours to count there, and its memcpy is not a kernel's access.
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:ignore_interceptors_accesses=1:report_signal_unsafe=0
exec "${test[@]}" "$@"
