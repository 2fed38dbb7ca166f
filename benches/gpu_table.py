#!/usr/bin/env python3
"""The closing table of gpu_run.sh, from the folder of its logs: gpu_table.py FOLDER

Every figure is of this one run, on this card. A share is of what the card was measured to reach in
the same minutes: its copy for GB/s, its best matrix product of that type for TFLOP/s, by PyTorch's
libraries where they are there and by the engine's own otherwise.
"""

import json
import pathlib
import re
import sys


def read_rows(path):
    """The JSON objects among a log's lines."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def rates_of(rows):
    return next((row["rates"] for row in rows if "rates" in row), {})


def tests_of(path):
    """How many tests ran and failed, of a log of test binaries."""
    text = path.read_text(errors="replace") if path.exists() else ""
    counts = re.findall(r"test result: \w+\. (\d+) passed; (\d+) failed", text)
    passed, failed = (sum(int(c[i]) for c in counts) for i in (0, 1))
    return f"{passed} tests passed, {failed} failed" if counts else ""


def sanitizer_of(path):
    text = path.read_text(errors="replace") if path.exists() else ""
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    return "; ".join(sorted(set(found)))


def print_parts(folder):
    print("part              verdict               s  found")
    for line in (folder / "parts.tsv").read_text().splitlines():
        name, verdict, seconds = line.split("\t")
        log = folder / f"{name}.log"
        found = tests_of(log) if name in ("parity", "capture") else sanitizer_of(log)
        print(f"{name:17} {verdict:18} {seconds:>4}  {found}".rstrip())


def print_kernels(rows, card, own):
    kernels = [row for row in rows if "kernel" in row]
    if not kernels:
        return
    best = {}
    for key in ("copy_gbs", "f32_tflops", "tf32_tflops", "bf16_tflops"):
        by = "PyTorch" if key in card else "the engine"
        if value := card.get(key) or own.get(key):
            best[key] = value
            print(f"{key:12} {value:10.1f}  by {by}")
    print(f"\n{'kernel':46} dtype       ms       rate           share")
    for row in kernels:
        key = "copy_gbs" if row["unit"] == "GB/s" else f"{row['dtype']}_tflops"
        share = f"{100 * row['rate'] / best[key]:4.0f} %" if key in best else ""
        ms, rate = f"{row['ms']:8.3f}", f"{row['rate']:10.1f}"
        print(f"{row['kernel']:46} {row['dtype']:5} {ms} {rate} {row['unit']:8} {share}")


def print_cases(ours, torch):
    """Milliseconds, and in brackets the peer's time over ours: over 1, ours is faster."""
    times = {row["case"]: row["median_ms"] for row in ours if "case" in row}
    peers = {(row["mode"], row["case"]): row["median_ms"] for row in torch if "case" in row}
    if not times:
        return
    modes = [mode for mode in ("eager", "amp", "compile") if any(m == mode for m, _ in peers)]
    columns = ["ours", "captured", *(f"torch {mode}" for mode in modes)]
    print(f"{'case, ms':36}" + "".join(f"{column:>18}" for column in columns))
    for case, ms in times.items():
        if case.endswith("/captured"):
            continue
        captured = times.get(case + "/captured")
        cells = [f"{ms:.3f}", f"{captured:.3f}" if captured else ""]
        for mode in modes:
            peer = peers.get((mode, case))
            ratio = f" ({peer / min(ms, captured or ms):.2f})" if peer and ms else ""
            cells.append(f"{peer:.3f}{ratio}" if peer else "")
        print(f"{case:36}" + "".join(f"{cell:>18}" for cell in cells))
    print("(in brackets: PyTorch's time over our better one)" if peers else "")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    kernels, speed, torch = (
        read_rows(folder / f"{name}.jsonl") for name in ("kernels", "speed", "torch")
    )
    print_parts(folder)
    print()
    print_kernels(kernels, rates_of(torch), rates_of(kernels))
    print()
    print_cases(speed, torch)


if __name__ == "__main__":
    main()
