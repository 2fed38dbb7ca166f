#!/usr/bin/env python3
"""The closing table of cpu_compare.sh in Markdown, from its rows' folder: cpu_table.py FOLDER

A case's time is the median of its rounds' medians, or with `--stat min_ms` the shortest run of all.
A ratio is PyTorch's figure over ours: over 1, ours is faster, or smaller in memory. The floor is
what the case's multiply-adds or bytes take at the machine's own rates, whichever is longer; shares
are of each round's median and rates, and the median of those stands here.
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
    shares = [by_case(folder / "ours.jsonl", f"{name}_share") for name in ("fma", "copy")]

    head = ["case", f"ours {unit}"]
    for name in peers:
        head += [f"{PEERS[name]} {unit}", "ratio"]
    head += [] if memory else ["multiply-adds", "x floor"]
    print_row(head)
    print("|---|" + "---|" * (len(head) - 1))
    ratios = {name: {} for name in peers}
    for case, own in ours.items():
        cells = [case, f"{own:.4g}"]
        for name, peer in peers.items():
            value = peer.get(case)
            if not own or not value:
                cells += ["", ""]
                continue
            ratios[name][case] = value / own
            cells += [f"{value:.4g}", f"{value / own:.2f}"]
        if not memory:
            fma, copy = ([*rounds] for rounds in (s.get(case, [0]) for s in shares))
            floor = [1 / max(pair) for pair in zip(fma, copy) if max(pair) > 0]
            cells.append(f"{100 * statistics.median(fma):.0f} %" if any(fma) else "")
            cells.append(f"{statistics.median(floor):.1f}" if floor else "")
        print_row(cells)

    empty = [] if memory else ["", ""]
    for part, training in (("train", True), ("ops", False)):
        cells = []
        for of_peer in ratios.values():
            found = [r for case, r in of_peer.items() if case.startswith("train/") == training]
            mean = f"**{geometric_mean(found):.2f}** (n = {len(found)})" if found else ""
            cells += ["", mean]
        if any(cells):
            print_row([f"geometric mean, {part}", "", *cells, *empty])
    cells = []
    for of_peer in ratios.values():
        worst = min(of_peer, key=of_peer.get, default="")
        cells += [worst, f"{of_peer[worst]:.2f}" if worst else ""]
    if any(cells):
        print_row(["worst", "", *cells, *empty])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("--stat", choices=["median_ms", "min_ms"], default="median_ms")
    parser.add_argument("--same-networks", nargs=2, metavar="JSONL", help="compare two lists")
    args = parser.parse_args()
    if args.same_networks:
        same_networks(*args.same_networks)
    elif args.folder:
        print_table(args.folder, args.stat)
    else:
        parser.error("a folder is wanted")


if __name__ == "__main__":
    main()
