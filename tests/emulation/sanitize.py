"""Runs tests with the CPU kernels and the emulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

`python tests/emulation/sanitize.py [pytest arguments]`, by default tests/emulation, which runs both kinds of kernel
side by side. The package is a copy in build/cpu-sanitize/; its Python files are those of lsfast/ at this moment.
"""

import os
import subprocess
import sys

import build

arguments = sys.argv[1:] or ["tests/emulation"]
try:
    build.emulated(sanitize=True)
    package = build.package()
except RuntimeError as error:
    sys.exit(str(error))
runtimes = [
    subprocess.run(
        [build.COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for name in ("libasan.so", "libubsan.so")
]
environment = os.environ | {
    "LD_PRELOAD": ":".join(runtimes),
    "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch hold on to memory until the end
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "LSFAST_EMULATION_SANITIZE": "1",
    "PYTHONPATH": str(package),
}
# -P: else the package of the current directory comes first. --capture=sys: else a report that ends the process is lost.
command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *arguments]
sys.exit(subprocess.run(command, env=environment, cwd=build.ROOT, check=False).returncode)
