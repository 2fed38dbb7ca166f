#!/usr/bin/env python3
"""The closing table of cpu_compare.sh, in Markdown, from the folder of its rows: cpu_table.py FOLDER

A case's time is the median of its rounds' medians, or with `--stat min_ms` the shortest run of all. A
ratio is PyTorch's figure over ours: over 1, ours is faster, or smaller in memory. The floor is what the
multiply-adds or the bytes of the case take at the machine's own rates, whichever is longer.
"""

import argparse
import math
import pathlib
import statistics
import sys

from gpu_table import read_rows

PEERS = {"default": "PyTorch, default layout", "channels_last": "channels last"}


def by_case(path, key):
    """The values of all rounds of each case."""
    found = {}
    for row in read_rows(path):
        if "case" in row and key in row:
            found.setdefault(row["case"], []).append(row[key])
    return found


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def same_networks(ours, peers):
    """Exit unless both sides name the same cases with the same numbers of parameters."""
    counts = [by_case(pathlib.Path(path), "parameters") for path in (ours, peers)]
    if counts[0] != counts[1]:
        names = sorted(set(counts[0]) | set(counts[1]))
        lines = [f"{n}: {counts[0].get(n)} and {counts[1].get(n)} parameters" for n in names]
        sys.exit("the networks differ:\n" + "\n".join(lines))


def print_row(cells):
    print("| " + " | ".join(cells) + " |")


def print_table(folder, stat):
    reduce = min if stat == "min_ms" else statistics.median
    memory = bool(by_case(folder / "ours.jsonl", "resident_mb"))
    key, unit = ("resident_mb", "MB") if memory else (stat, "ms")
    times = {
        name: {case: reduce(values) for case, values in by_case(path, key).items()}
        for name in ("ours", *PEERS)
        if (path := folder / f"{name}.jsonl").exists()
    }
    ours, peers = times["ours"], {name: times[name] for name in PEERS if name in times}
    # of its own round's median and rates: shares are never taken from two windows
    shares = [by_case(folder / "ours.jsonl", f"{name}_share") for name in ("fma", "copy")]

    head = ["case", f"ours {unit}"] + [h for name in peers for h in (f"{PEERS[name]} {unit}", "ratio")]
    print_row(head + ([] if memory else ["multiply-adds", "x floor"]))
    print("|---|" + "---|" * (len(head) - 1 + 2 * (not memory)))
    ratios = {name: {} for name in peers}
    for case, own in ours.items():
        cells = [case, f"{own:.4g}"]
        for name, peer in peers.items():
            if value := peer.get(case):
                ratios[name][case] = value / own if own else math.inf
            cells += [f"{value:.4g}", f"{ratios[name][case]:.2f}"] if value else ["", ""]
        if not memory:
            fma, copy = ([*rounds] for rounds in (s.get(case, [0]) for s in shares))
            floor = [1 / max(pair) for pair in zip(fma, copy) if max(pair) > 0]
            cells.append(f"{100 * statistics.median(fma):.0f} %" if any(fma) else "")
            cells.append(f"{statistics.median(floor):.1f}" if floor else "")
        print_row(cells)

    empty = [] if memory else ["", ""]
    parts = {"train": lambda c: c.startswith("train/"), "ops": lambda c: not c.startswith("train/")}
    for part, belongs in parts.items():
        found = [[r for c, r in ratios[name].items() if belongs(c)] for name in peers]
        if any(found):
            means = [["", f"**{geometric_mean(r):.2f}** (n = {len(r)})" if r else ""] for r in found]
            print_row([f"geometric mean, {part}", "", *sum(means, []), *empty])
    if any(ratios.values()):
        worst = [min(r, key=r.get, default="") for r in ratios.values()]
        cells = [[case, f"{r[case]:.2f}" if case else ""] for case, r in zip(worst, ratios.values())]
        print_row(["worst", "", *sum(cells, []), *empty])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--stat", choices=["median_ms", "min_ms"], default="median_ms")
    parser.add_argument("--same-networks", nargs=2, metavar="JSONL", help="compare two lists instead")
    args = parser.parse_args()
    if args.same_networks:
        same_networks(*args.same_networks)
    elif args.folder:
        print_table(args.folder, args.stat)
    else:
        parser.error("a folder is wanted")


if __name__ == "__main__":
    main()
