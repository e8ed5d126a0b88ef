"""Installs what an interpreter lacks of the build's, the package's and the named extras' requirements; nothing it has.

Usage: requirements.py TORCH [extra ...], with TORCH the pinned torch to install where there is none, "torch==2.13.0".
"""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement


def missing(requirements: list[str]) -> list[str]:
    """Return the requirements that the running interpreter does not meet."""
    lacking = []
    for text in requirements:
        requirement = Requirement(text)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            lacking.append(text)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            lacking.append(text)
    return lacking


def install(requirements: list[str], *options: str) -> None:
    """Install requirements with pip, or end with a line that names them."""
    print(f"installing {' '.join(requirements)}", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *options,
        *requirements,
    ]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"{sys.executable} lacks {', '.join(requirements)}, and they could not be installed")


def main() -> None:
    """Install torch first, so that no other package brings in a build of its own choice, then the rest."""
    pinned, *extras = sys.argv[1:]
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    if missing([next(text for text in project["project"]["dependencies"] if text.startswith("torch"))]):
        install([pinned])
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras:
        requirements += project["project"]["optional-dependencies"][extra]
    lacking = missing(requirements)
    alone = [text for text in lacking if Requirement(text).name in project["tool"]["lsfast"]["without-dependencies"]]
    rest = [text for text in lacking if text not in alone]
    if rest:
        install(rest)
    if alone:
        install(alone, "--no-deps")


if __name__ == "__main__":
    main()
