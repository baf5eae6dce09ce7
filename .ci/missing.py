# Owns: the list of packages that an interpreter lacks, said at once: `python3 .ci/missing.py "torch>=2.10"
# tests/requirements.txt`.
# Must not know: what the packages are for. Reads what is installed; asks no network.
from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path

PROGRAMS = ("cmake", "ninja")  # as good from the system as from PyPI

try:
    from packaging.requirements import Requirement
    from packaging.version import Version
except ImportError:  # pip has a copy of its own
    try:
        from pip._vendor.packaging.requirements import Requirement
        from pip._vendor.packaging.version import Version
    except ImportError:
        sys.exit(
            f"{sys.executable} has neither packaging nor pip, one of which says what else it lacks; install packaging "
            "into it"
        )


def lines(argument: str) -> list[str]:
    """The requirements of a file, or the one that is written out."""
    texts = Path(argument).read_text().splitlines() if argument.endswith(".txt") else [argument]
    return [text for line in texts if (text := line.partition("#")[0].strip())]


def required(arguments: list[str]) -> list[Requirement]:
    """Each package once, with what all lists together ask of it."""
    found: dict[str, Requirement] = {}
    for line in (line for argument in arguments for line in lines(argument)):
        new = Requirement(line)
        if new.marker is None or new.marker.evaluate():
            new.specifier &= found.get(new.name, new).specifier
            found[new.name] = new
    return list(found.values())


def lacks(requirement: Requirement) -> str | None:
    """What is there instead; None where the requirement is met."""
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None if requirement.name in PROGRAMS and shutil.which(requirement.name) else "not installed"
    release = Version(found).base_version  # 2.10.0a0 of a vendor's build is new enough
    return None if requirement.specifier.contains(release, prereleases=True) else f"{found} is installed"


def main() -> str | None:
    missing = {str(each): instead for each in required(sys.argv[1:]) if (instead := lacks(each))}
    if not missing:
        return None
    listed = "\n".join(f"  {line}: {instead}" for line, instead in missing.items())
    install = " ".join(f"'{line}'" for line in missing)
    return (
        f"{sys.executable} lacks:\n{listed}\nInstall them: {sys.executable} -m pip install {install}\nor leave "
        "PYTHON out: make then installs what it needs into .venv"
    )


if __name__ == "__main__":
    sys.exit(main())
