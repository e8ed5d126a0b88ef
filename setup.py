"""Builds lsfast: the operators (`lsfast._C`, CPU and CUDA) and the scalar numerics over NumPy (`lsfast._numerics`).

Environment: FORCE_CUDA=1 builds the CUDA kernels without a visible GPU, TORCH_CUDA_ARCH_LIST names the architectures,
MAX_JOBS limits parallel compilation, DEBUG=1 builds without optimization and with symbols.
"""

import glob
import os
import re
import shutil
import subprocess
import sys

import torch
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup


def toolkit_of_nvcc() -> str | None:
    """Ask the nvcc on PATH where its toolkit lies: it may be a link or a script far from it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.MULTILINE)
    return os.path.realpath(top[1]) if top else None


if not os.environ.get("CUDA_HOME") and not os.environ.get("CUDA_PATH") and toolkit_of_nvcc():
    os.environ["CUDA_HOME"] = toolkit_of_nvcc()  # read by torch when the next line runs
from torch.utils import cpp_extension  # noqa: E402

TORCH_TARGET_VERSION = "0x020b000000000000"  # torch 2.11: the oldest whose stable interface we call
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
INCLUDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc")

# Bits must not depend on the instruction set: no contraction to fused multiply-add, no fast-math.
HOST_FLAGS = [
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-wrapv",  # Python's own flags define the overflow of integers, which keeps loops over them from vectorizing
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]
DEVICE_FLAGS = ["--fmad=false", "--expt-relaxed-constexpr", "-lineinfo"]


def with_cuda() -> bool:
    """Whether to build the CUDA kernels: torch has CUDA, a toolkit is found, and someone will use them."""
    forced = os.environ.get("FORCE_CUDA") == "1"
    toolkit = cpp_extension.CUDA_HOME
    if forced and torch.version.cuda is None:
        sys.exit(f"lsfast: FORCE_CUDA=1, but torch {torch.__version__} is a build without CUDA; install one with CUDA")
    if forced and toolkit is None:
        sys.exit(
            "lsfast: FORCE_CUDA=1, but no CUDA toolkit was found: looked at CUDA_HOME, CUDA_PATH, nvcc on PATH "
            "and /usr/local/cuda"
        )
    wanted = forced or torch.cuda.is_available() or "TORCH_CUDA_ARCH_LIST" in os.environ
    return torch.version.cuda is not None and toolkit is not None and wanted


def operators(cuda: bool):
    """Return the extension module `lsfast._C`."""
    debug = os.environ.get("DEBUG") == "1"
    optimize = ["-O0", "-g"] if debug else ["-O3", "-g0"]  # Python's own flags have -g: a third of the time to build
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    sources = sorted(glob.glob("csrc/*/*ops.cpp") + glob.glob("csrc/platform/*.cpp"))
    sources.remove("csrc/platform/numerics_module.cpp")
    if cuda:
        if "TORCH_CUDA_ARCH_LIST" not in os.environ and not torch.cuda.is_available():
            os.environ["TORCH_CUDA_ARCH_LIST"] = DEFAULT_ARCHITECTURES
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "native")
        macros += [("LSFAST_WITH_CUDA", None), ("USE_CUDA", None), ("LSFAST_CUDA_ARCHITECTURES", f'"{architectures}"')]
        sources += sorted(glob.glob("csrc/*/*.cu"))
    extension = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    flags = {"cxx": optimize + HOST_FLAGS}
    if cuda:
        flags["nvcc"] = optimize[:1] + DEVICE_FLAGS
    return extension(
        "lsfast._C",
        sources,
        include_dirs=[INCLUDE],
        define_macros=macros,
        extra_compile_args=flags,
        py_limited_api=True,
    )


setup(
    ext_modules=[
        operators(with_cuda()),
        Pybind11Extension(
            "lsfast._numerics",
            ["csrc/platform/numerics_module.cpp"],
            include_dirs=[INCLUDE],
            extra_compile_args=["-O2", *HOST_FLAGS],
        ),
    ],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
