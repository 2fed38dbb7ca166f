#!/usr/bin/env bash
# sanitize.sh asan|tsan [cargo test arguments] - runs the tests of the emulated device with its kernels under
# AddressSanitizer and UBSan, or under ThreadSanitizer. Stable Rust, g++ and its sanitizer libraries. Without
# arguments: every kernel's parity tests and the planted faults.
set -euo pipefail
cd "$(dirname "$0")/../.."
sanitizer=${1:?asan or tsan}
shift
[ $# -gt 0 ] || set -- --features emulator --test cuda --test planted

export COTANGENT_SANITIZER=$sanitizer CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/sanitized}
# rustc links these libraries late; they want to be first
runner="env LD_PRELOAD=$(g++ -print-file-name="lib$sanitizer.so")"
# TSan of gcc 12 cannot place its shadow under newer kernels' address randomization
! setarch -R true 2>/dev/null || runner="setarch -R $runner"
# a target named by hand: build scripts are then built without the runner's preload
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$runner
# The Rust side is not instrumented: leaks are not ours to count there, and its memcpy is not a kernel's access.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:ignore_interceptors_accesses=1:report_signal_unsafe=0
exec cargo test --locked --target x86_64-unknown-linux-gnu "$@"
