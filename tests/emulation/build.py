"""Builds the CUDA kernels as C++ over the emulation, and the ordinary operators under sanitizers.

`python tests/emulation/build.py [--sanitize]` builds the operators with their CUDA side emulated
(`torch.ops.lsfast_emulated`) and the kernels of faults.cu, into build/emulation/ or build/emulation-sanitize/.
`python tests/emulation/build.py --package` builds a copy of the package whose `lsfast._C` has AddressSanitizer and
UndefinedBehaviorSanitizer, into build/cpu-sanitize/.
A file is compiled again when it, a header it includes or its command has changed.
"""

import argparse
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "emulation"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    "-O1",
    "-g1",  # lines in reports, no variables: a third less to wait for
    "-fPIC",
    "-ffp-contract=off",
    "-std=c++20",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
    f"-I{ROOT / 'csrc'}",
]
EMULATION = ["-DLSFAST_EMULATION", f"-I{HERE}"]
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    # AddressSanitizer leaves sections of our own alone unless told: this one holds the __shared__ arrays.
    "-fsanitize-sections=lsfast_shared",
]


def torch_flags() -> list[str]:
    """The flags of the files that know torch."""
    includes = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    return ["-DTORCH_TARGET_VERSION=0x020b000000000000", *includes]


def torch_libraries() -> list[str]:
    """The link flags of a library of operators."""
    paths = cpp_extension.library_paths()
    return [*(f"-L{path}" for path in paths), *(f"-Wl,-rpath,{path}" for path in paths), "-ltorch_cpu"]


def emulated(sanitize: bool) -> Path:
    """Build the operators with their CUDA side emulated; the library to load."""
    extra = EMULATION + (SANITIZE if sanitize else [])
    sources = dict.fromkeys(sorted(ROOT.glob("csrc/*/*.cu")), extra)
    sources |= {HERE / "scheduler.cpp": extra, HERE / "no_cpu_kernels.cpp": extra}
    sources |= {source: extra + torch_flags() for source in sorted(ROOT.glob("csrc/*/*ops.cpp"))}
    folder = folder_of(sanitize)
    return build(folder / "operators.so", sources, ["-shared", "-Wl,-z,defs", *torch_libraries()], sanitize)


def faults() -> Path:
    """Build the kernels of faults.cu; the library to load. It is never sanitized: its faults are to be survived."""
    sources = {HERE / "faults.cu": EMULATION, HERE / "scheduler.cpp": EMULATION}
    return build(folder_of(False) / "faults.so", sources, ["-shared", "-Wl,-z,defs"], False)


def faults_program() -> Path:
    """Build the program that runs the kernels of faults.cu under the sanitizers."""
    names = ["faults.cu", "faults_main.cpp", "scheduler.cpp"]
    return build(folder_of(True) / "faults", {HERE / name: EMULATION + SANITIZE for name in names}, [], True)


def package() -> Path:
    """Build a copy of the package with sanitized operators; the folder to put on PYTHONPATH."""
    folder = ROOT / "build" / "cpu-sanitize"
    shutil.rmtree(folder / "lsfast", ignore_errors=True)
    shutil.copytree(ROOT / "lsfast", folder / "lsfast", ignore=shutil.ignore_patterns("_C.*", "__pycache__"))
    extra = [*SANITIZE, *torch_flags(), "-I" + sysconfig.get_paths()["include"]]
    extra += ["-fno-math-errno", "-fno-trapping-math"]  # as in setup.py
    sources = sorted([*ROOT.glob("csrc/*/*ops.cpp"), *ROOT.glob("csrc/platform/*.cpp")])
    sources.remove(ROOT / "csrc" / "platform" / "numerics_module.cpp")
    library = build(folder / "_C.abi3.so", dict.fromkeys(sources, extra), ["-shared", *torch_libraries()], True)
    shutil.copy2(library, folder / "lsfast" / library.name)
    return folder


def folder_of(sanitize: bool) -> Path:
    """Where the emulated build goes."""
    return ROOT / "build" / ("emulation-sanitize" if sanitize else "emulation")


def build(target: Path, sources: dict[Path, list[str]], link_flags: list[str], sanitize: bool) -> Path:
    """Compile each source with its flags, at most MAX_JOBS (2) at a time, and link them."""
    folder = target.parent / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, of which one builds
        return _build(target, folder, sources, link_flags, sanitize)


def _build(target: Path, folder: Path, sources: dict[Path, list[str]], link_flags: list[str], sanitize: bool) -> Path:
    objects = {source: folder / f"{source.parent.name}-{source.name}.o" for source in sources}
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        compiled = list(pool.map(lambda source: compile_source(source, objects[source], sources[source]), sources))
    command = [COMPILER, *map(str, objects.values()), *link_flags, *(SANITIZE if sanitize else [])]
    if any(compiled) or not target.exists() or changed(target, command):
        temporary = target.with_name(target.name + ".new")
        run([*command, "-o", str(temporary)])
        temporary.replace(target)  # whoever has the old library loaded keeps it
        record(target, command)
    return target


def compile_source(source: Path, result: Path, extra: list[str]) -> bool:
    """Compile one file if it is out of date; whether it was."""
    dependencies = result.with_suffix(".d")
    command = [COMPILER, *FLAGS, *extra, "-MMD", "-MF", str(dependencies), "-x", "c++", "-c", str(source)]
    if not changed(result, command) and not newer(dependencies, result):
        return False
    result.unlink(missing_ok=True)
    run([*command, "-o", str(result)])
    record(result, command)
    return True


def changed(result: Path, command: list[str]) -> bool:
    """Whether a result is missing or was made by another command."""
    recorded = result.with_name(result.name + ".command")
    return not result.exists() or not recorded.exists() or recorded.read_text() != shlex.join(command)


def record(result: Path, command: list[str]) -> None:
    """Remember the command that made a result."""
    result.with_name(result.name + ".command").write_text(shlex.join(command))


def newer(dependencies: Path, result: Path) -> bool:
    """Whether a file of the compiler's list of dependencies is newer than the result, or gone."""
    files = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return any(not Path(file).exists() or Path(file).stat().st_mtime > result.stat().st_mtime for file in files)


def run(command: list[str]) -> None:
    """Run a compiler; its words on a failure are the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"emulation: {shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("--package", action="store_true", help="the ordinary package, its CPU operators sanitized")
    arguments = parser.parse_args()
    try:
        built = [package()] if arguments.package else [emulated(arguments.sanitize), faults(), faults_program()]
    except RuntimeError as error:
        sys.exit(str(error))
    print(*built, sep="\n")
