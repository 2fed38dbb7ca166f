#!/usr/bin/env bash
# The speed bench beside PyTorch on this machine's CPU: benches/cpu_compare.sh [SUBSTR]
# Ours, PyTorch in its default layout and PyTorch channels-last take turns, case by case, so that each
# ratio is of one minute. Ends with a table in Markdown.
#   THREADS=2         of each of the three
#   ROUNDS=3          turns a case
#   STAT=median_ms    or min_ms, which other work on the machine disturbs less
#   MEMORY=1          the training steps' peak memory in place of times
#   PYTHON=python3    an interpreter with PyTorch; without PyTorch the table has our columns alone
#   OUT=FOLDER        where the rows stay, three files of JSON lines
set -euo pipefail
cd "$(dirname "$0")/.."
only=${1:-} threads=${THREADS:-2} rounds=${ROUNDS:-3} python=${PYTHON:-python3}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
rm -f "$out"/{ours,default,channels_last}.jsonl
measure=()
if [ -n "${MEMORY:-}" ]; then measure=(--memory) rounds=1; fi

torch=yes
if ! "$python" -c 'import torch' 2>/dev/null; then
  torch=
  cat >&2 <<'HELP'
No PyTorch for this interpreter, so ours stands alone. To compare, in an environment of its own:
  python3 -m venv DIR && DIR/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
  PYTHON=DIR/bin/python benches/cpu_compare.sh
HELP
fi

# the binary itself: cargo would look at the sources before each turn
speed=$(cargo bench --locked --bench speed --no-run --message-format=json |
  sed -nE 's/.*"executable":"([^"]*speed-[^"]*)".*/\1/p' | tail -1)
ours() { RAYON_NUM_THREADS=$threads "$speed" --json "$@"; }
peer() { OMP_NUM_THREADS=$threads "$python" benches/torch_cases.py --device cpu --threads "$threads" "$@"; }

ours --list --only "$only" >"$out/cases.jsonl"
if [ -n "$torch" ]; then
  peer --list --only "$only" >"$out/peer_cases.jsonl"
  python3 benches/cpu_table.py --same-networks "$out/cases.jsonl" "$out/peer_cases.jsonl"
fi
cases=$(sed -nE 's/.*"case": "([^"]*)".*/\1/p' "$out/cases.jsonl")
[ -z "${MEMORY:-}" ] || cases=$(grep '^train/' <<<"$cases")

for case in $cases; do
  for ((round = 0; round < rounds; round++)); do
    echo "$case, $((round + 1)) of $rounds" >&2
    ours --only "$case" "${measure[@]}" >>"$out/ours.jsonl"
    [ -n "$torch" ] || continue
    peer --only "$case" "${measure[@]}" >>"$out/default.jsonl"
    peer --only "$case" "${measure[@]}" --channels-last >>"$out/channels_last.jsonl"
  done
done
echo "$(sed -nE 's/^model name\s*: //p' /proc/cpuinfo | head -1), $threads threads, $rounds rounds, $(date +%F)"
echo
python3 benches/cpu_table.py "$out" --stat "${STAT:-median_ms}"
