#!/usr/bin/env python3
"""Compiles kernels/*.cu into kernels/ptx/, what ships: the same bytes on any machine.

The compiler comes from pinned wheels, installed into target/ptx-venv (or $PTX_VENV) the first
time. Beside them python3 with venv and g++ are needed; no GPU, no CUDA toolkit.

Only what changed is compiled again, by the hashes in MANIFEST.txt. Every file must pass

  - an assembler of CUDA 12.0, the oldest driver's (R525): the compiler is newer, so the header
    line is rewritten to that version and this proves that nothing newer is in the text;
  - the alignment check: shared memory that is read 16 bytes at a time is declared so;
  - the spill check: no f32, bf16, f16 or integer kernel keeps registers in memory, unless its
    file says `// spills-allowed: KERNEL reason` (KERNEL may end in *).

RESOURCES.txt lists what each kernel takes of a compute capability 9.0 device, so that a review
sees a change; dynamic shared memory is chosen at the launch and is not in it. modules.rs embeds
the files in the library.
"""

import argparse
import concurrent.futures
import fnmatch
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SHIPPED = HERE / "ptx"
VENV = pathlib.Path(os.environ.get("PTX_VENV", HERE.parent / "target" / "ptx-venv")).absolute()
# The last is only for its assembler, the floor. Without --no-deps pip would mix versions.
WHEELS = """\
nvidia-cuda-nvcc==13.0.88
nvidia-nvvm==13.0.88
nvidia-cuda-crt==13.0.88
nvidia-cuda-runtime==13.0.96
nvidia-cuda-cccl==13.0.85
nvidia-cuda-nvcc-cu12==12.0.140
"""
PTX_VERSION = "8.0"  # drivers from R525 (CUDA 12.0) on read it
TARGET = "80"  # every card from compute capability 8.0 on compiles it for itself
COLUMNS = "{:<20} {:<44} {:>9} {:>6} {:>12} {:>11} {:>7}"
HEADINGS = ["file", "kernel", "registers", "stack", "spill-stores", "spill-loads", "shared"]


class BuildError(Exception):
    """What the person at the terminal has to mend."""


# ------------------------------------------------------------------ the compiler


def run(command, what):
    """Run a program in this folder and give its stderr; `what` opens the message if it fails."""
    # switches and include paths from outside would change what comes out
    drop = {"CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"}
    env = {k: v for k, v in os.environ.items() if k not in drop and not k.startswith("NVCC_")}
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{what}\n{done.stdout}{done.stderr}".rstrip())
    return done.stderr


def install():
    """Make the environment with the pinned wheels unless it is there."""
    stamp = VENV / "wheels.txt"
    if stamp.exists() and stamp.read_text() == WHEELS:
        return
    print(f"installing the compiler into {VENV}", file=sys.stderr)
    run(
        [sys.executable, "-m", "venv", VENV],
        "python3 cannot make a virtual environment (Debian: apt install python3-venv):",
    )
    wanted = VENV / "wanted.txt"
    wanted.write_text(WHEELS)
    pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(
        [*pip, "--only-binary=:all:", "--no-deps", "--requirement", wanted],
        "pip cannot install the compiler's wheels:",
    )
    wanted.rename(stamp)


class Tools:
    """nvcc, and the two assemblers that judge what it writes."""

    def __init__(self):
        if not shutil.which("g++"):
            raise BuildError("g++ is missing: nvcc preprocesses with it (Debian: apt install g++)")
        install()
        try:
            wheels = next(VENV.glob("lib/python3*/site-packages/nvidia"))
        except StopIteration:
            raise BuildError(f"{VENV} holds no compiler; remove it and run this again") from None
        self.nvcc = wheels / "cu13" / "bin" / "nvcc"
        self.assembler = wheels / "cu13" / "bin" / "ptxas"
        self.oldest_assembler = wheels / "cuda_nvcc" / "bin" / "ptxas"


# ------------------------------------------------------------------ one file


def normalise(ptx):
    """The version that ships, and no trace of the folder that it was made in."""
    ptx, found = re.subn(r"(?m)^\.version .*$", f".version {PTX_VERSION}", ptx)
    if found != 1:
        raise BuildError(f"{found} .version lines in what nvcc wrote")
    # a hint that only newer assemblers know: which bytes of a wide load are used
    ptx = re.sub(r'(?m)^\s*\.pragma "used_bytes_mask \d+";\n', "", ptx)
    # names of file-local symbols hold a hash of the working directory
    return re.sub(r"(_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}_", r"\g<1>00000000_", ptx)


def check_paths(ptx, scratch):
    """No path of this machine may be in the text, as such or as a string's list of bytes."""
    for path in (str(HERE), str(VENV), str(scratch)):
        if path in ptx or ", ".join(map(str, path.encode())) in ptx:
            raise BuildError(f"{path} is in the PTX (an assert?), which would differ elsewhere")


def check_alignment(ptx):
    """Shared arrays of a kernel that moves 16 bytes at a time must be declared 16-aligned.

    Unaligned ones work by luck of the layout. Which array an access means cannot be told from the
    text, so all arrays of such a kernel have to be.
    """
    wide = r"\b(ld|st)\.shared\.v(4\.\w32|2\.\w64)\b|\bcp\.async\.cg\.|\bldmatrix\."
    arrays = re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[", ptx)
    for entry in re.split(r"(?m)^(?=\.visible \.entry )", ptx)[1:]:
        if not re.search(wide, entry):
            continue
        low = [n for a, n in arrays if int(a) < 16 and re.search(rf"\b{n}\b", entry)]
        if low:
            kernel = re.match(r"\.visible \.entry (\w+)", entry)[1]
            raise BuildError(
                f"{kernel} moves 16 bytes of shared memory at a time; declare __align__(16): "
                + ", ".join(low)
            )


def resources(report):
    """Rows of (kernel, registers, stack, spill stores, spill loads, shared) from ptxas -v."""
    frame = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    rows, kernel, function, memory = [], None, None, {}
    for line in report.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = m[1]
        elif m := re.search(r"Function properties for (\w+)", line):
            function = m[1]
        elif m := re.search(frame, line):
            memory[function] = m.groups()
        elif m := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows.append((kernel, m[1], *memory[kernel], shared[1] if shared else "0"))
    return rows


def check_spills(source, rows):
    """f64 kernels are there for the gradient checks; all others are hot."""
    allowed, found = re.findall(r"(?m)^// spills-allowed: (\S+) +\S", source), []
    for kernel, _, stack, stores, loads, _ in rows:
        hot = "f64" not in kernel.split("_")
        spills = (stack, stores, loads) != ("0", "0", "0")
        if spills and hot and not any(fnmatch.fnmatchcase(kernel, name) for name in allowed):
            found.append(f"  {kernel}: {stack} of stack, {stores} of stores, {loads} of loads")
    if found:
        raise BuildError(
            "\n".join(["kernels that keep registers in memory, in bytes:", *sorted(found)])
            + "\nAn array indexed at run time does it, and too much unrolling; if it must be, say"
            + "\n// spills-allowed: KERNEL reason"
        )


def assemble(assembler, card, ptx, scratch, what):
    """Let ptxas judge the text; give its report."""
    text = scratch / "text.ptx"
    text.write_text(ptx)
    try:
        return run([assembler, f"-arch=sm_{card}", "-v", text, "-o", scratch / "cubin"], what)
    except BuildError as error:
        # its messages count lines of a file that is gone in a moment
        numbers = {int(n) for n in re.findall(r"text\.ptx, line (\d+)", str(error))}
        lines = ptx.splitlines()
        quoted = (f"\nline {n}: {lines[n - 1].strip()}" for n in sorted(numbers))
        raise BuildError(str(error) + "".join(quoted)) from None


def compile_file(tools, cu):
    """The PTX of one .cu and its rows of resources."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        raw = scratch / "raw.ptx"
        # a relative name, so that no path gets into the output
        switches = ["-std=c++17", "-O3", "-Werror=all-warnings", "-I."]
        run([tools.nvcc, "-ptx", f"-arch=compute_{TARGET}", *switches, cu, "-o", raw], "nvcc:")
        ptx = normalise(raw.read_text())
        check_paths(ptx, scratch)
        check_alignment(ptx)
        too_new = f"CUDA 12.0 does not take it as PTX {PTX_VERSION}, nor would its drivers:"
        assemble(tools.oldest_assembler, TARGET, ptx, scratch, too_new)
        rows = resources(assemble(tools.assembler, "90", ptx, scratch, "ptxas:"))
    entries = re.findall(r"(?m)^\.visible \.entry (\w+)", ptx)
    if sorted(entries) != sorted(row[0] for row in rows):
        raise BuildError("the assembler's report does not name the kernels of the file")
    check_spills((HERE / cu).read_text(), rows)
    return ptx, rows


# ------------------------------------------------------------------ all files


def sources():
    """The names of the .cu files."""
    return sorted(path.name for path in HERE.glob("*.cu"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shared_hashes():
    """What every file depends on: the headers, and this script with its switches."""
    return {path.name: sha256(path) for path in [*HERE.glob("*.cuh"), HERE / "build.py"]}


def read_rows(folder):
    """{file: rows} of RESOURCES.txt."""
    path, found = folder / "RESOURCES.txt", {}
    for line in path.read_text().splitlines()[1:] if path.exists() else []:
        cu, *row = line.split()
        found.setdefault(cu, []).append(tuple(row))
    return found


def read_manifest(folder):
    """{name: hash} of MANIFEST.txt; names are relative to kernels/."""
    path = folder / "MANIFEST.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, name in (line.split() for line in lines)}


def is_fresh(cu, manifest, folder):
    """Whether this .cu, and the .ptx that was made of it, are those of the manifest."""
    ptx = folder / (cu[:-3] + ".ptx")
    return (
        ptx.exists()
        and manifest.get(cu) == sha256(HERE / cu)
        and manifest.get(f"ptx/{ptx.name}") == sha256(ptx)
    )


def compile_files(tools, names):
    """{file: (ptx, rows)} of those that pass, and the messages of those that do not."""
    done, failed = {}, []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {cu: pool.submit(compile_file, tools, cu) for cu in names}
        for cu, job in jobs.items():
            try:
                done[cu] = job.result()
            except BuildError as error:
                failed.append(f"kernels/{cu}: {error}")
    return done, failed


def build(folder, chosen):
    """Bring the chosen files in `folder` up to date; the names of those that were compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest, rows, shared = read_manifest(folder), read_rows(folder), shared_hashes()
    moved = any(manifest.get(name) != digest for name, digest in shared.items())
    stale = [cu for cu in chosen if moved or not is_fresh(cu, manifest, folder)]
    done, failed = compile_files(Tools(), stale) if stale else ({}, [])

    for cu, (ptx, used) in done.items():
        out = folder / (cu[:-3] + ".ptx")
        out.write_text(ptx)
        manifest |= {cu: sha256(HERE / cu), f"ptx/{out.name}": sha256(out)}
        rows[cu] = used
    # where files that the headers' change made stale are left, the old hashes keep them so
    if not moved or (not failed and set(chosen) == set(sources())):
        manifest |= shared
    write(folder, manifest, rows)
    if failed:
        raise BuildError("\n\n".join(failed))
    return stale


def write(folder, manifest, rows):
    """MANIFEST.txt, RESOURCES.txt and modules.rs; nothing stays of sources that went."""
    names = sources()
    for ptx in folder.glob("*.ptx"):
        if ptx.stem + ".cu" not in names:
            ptx.unlink()
    known = {*names, *shared_hashes(), *(f"ptx/{cu[:-3]}.ptx" for cu in names)}
    lines = [f"{manifest[name]}  {name}\n" for name in sorted(known & manifest.keys())]
    (folder / "MANIFEST.txt").write_text("".join(lines))
    modules = sorted(path.stem for path in folder.glob("*.ptx"))
    pairs = "".join(f'    ("{stem}", include_str!("{stem}.ptx")),\n' for stem in modules)
    (folder / "modules.rs").write_text(f"&[\n{pairs}]\n")
    table = [HEADINGS] + [[cu, *row] for cu in names for row in sorted(rows.get(cu, []))]
    (folder / "RESOURCES.txt").write_text("".join(COLUMNS.format(*row) + "\n" for row in table))


def difference(name, ours, shipped):
    """One line on how a file differs, or None."""
    if not (ours / name).exists():
        return f"{name}: nothing to make it from"
    if not (shipped / name).exists():
        return f"{name}: missing"
    a, b = ((folder / name).read_text().splitlines() for folder in (ours, shipped))
    if a == b:
        return None
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    ours, theirs = (lines[at].strip() if at < len(lines) else "(end)" for lines in (a, b))
    return f"{name}, line {at + 1}: is `{theirs}`, should be `{ours}`"


def check():
    """Build everything anew beside kernels/ptx, which must be the same."""
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        build(scratch, sources())
        names = {path.name for folder in (scratch, SHIPPED) for path in folder.glob("*")}
        found = [d for name in sorted(names) if (d := difference(name, scratch, SHIPPED))]
    if found:
        message = "kernels/ptx is stale; run kernels/build.py and commit it"
        raise BuildError("\n".join([message, *found]))
    print(f"kernels/ptx is up to date: {len(sources())} files")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--check", action="store_true", help="write nothing, fail if kernels/ptx differs")
    add("files", nargs="*", metavar="FILE.cu", help="only these (all, if none)")
    args = parser.parse_args()
    chosen = [pathlib.Path(name).name for name in args.files] or sources()
    if unknown := sorted(set(chosen) - set(sources())):
        parser.error(f"no such file in kernels/: {', '.join(unknown)}")
    if args.check and args.files:
        parser.error("--check is of all files")
    if args.check:
        check()
    else:
        compiled = build(SHIPPED, chosen)
        print(f"compiled: {', '.join(compiled) or 'nothing, all is up to date'}")


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"error: {error}")
