# Owns: the headers of torch's releases, out of the wheels on PyPI, in .venv-headers: each as a folder of torch that the
# library can be built against.
# Must not know: what is compiled with them.
from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME, UV = ROOT / ".venv-headers", ROOT / ".venv-wheels/bin/uv"
# The newest of each minor version that the library serves.
RELEASES = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
OLDEST, NEWEST = RELEASES[0], RELEASES[-1]
DIRECTORY = 4 << 20  # bytes at a wheel's end that hold the list of its members
NEAR = 1 << 20  # members this near each other come in one piece


def torch_root(release: str) -> Path:
    """What FOCAL_EXT_TORCH_ROOT may be: include/ and version.py of that release."""
    return HOME / release / "torch"


def wheel_of(release: str) -> str:
    """The address of a wheel of torch for a processor whose wheels are small; headers are the same in all."""
    asked = (
        UV,
        "pip",
        "compile",
        "-",
        "-q",
        "--no-deps",
        "--no-cache",
        "--format",
        "pylock.toml",
        "--python-version",
        "3.11",
        "--python-platform",
        "aarch64-manylinux_2_28",
    )
    done = subprocess.run(
        [*map(str, asked), "--only-binary", ":all:"],
        input=f"torch=={release}",
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r'url = "([^"]+\.whl)"', done.stdout)
    if not found:
        raise SystemExit(f"no wheel of torch {release} is to be had: {done.stderr[-2000:]}")
    return found[1]


def piece(url: str, which: str) -> tuple[bytes, int]:
    """Some bytes of a file on a server, and the length of the whole file."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={which}"}), timeout=60) as answer:
        if answer.status != 206:
            raise SystemExit("the server sends whole files only, gigabytes where 13 MB for each release would do")
        return answer.read(), int(answer.headers["Content-Range"].split("/")[1])


def is_wanted(member: zipfile.ZipInfo) -> bool:
    return member.filename.startswith("torch/include/") or member.filename == "torch/version.py"


def spans(wheel: zipfile.ZipFile) -> list[tuple[int, int]]:
    """First byte and end of the pieces that hold every wanted member."""
    members = sorted(wheel.infolist(), key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in members[1:]), wheel.start_dir]
    found: list[tuple[int, int]] = []
    for member, end in zip(members, ends):
        if not is_wanted(member):
            continue
        if found and member.header_offset - found[-1][1] < NEAR:
            found[-1] = (found[-1][0], end)
        else:
            found.append((member.header_offset, end))
    return found


def fetch(release: str) -> None:
    """A file as long as the wheel, of which only the pieces that are wanted are written, is a zip file to whoever reads
    no others."""
    shutil.rmtree(HOME / release, ignore_errors=True)
    (HOME / release).mkdir(parents=True)
    url, local = wheel_of(release), HOME / release / "wheel"
    end, length = piece(url, f"-{DIRECTORY}")
    with local.open("w+b") as file:
        file.truncate(length)
        file.seek(length - len(end))
        file.write(end)
        file.flush()
        for first, last in spans(zipfile.ZipFile(local)):
            file.seek(first)
            file.write(piece(url, f"{first}-{last - 1}")[0])
    with zipfile.ZipFile(local) as wheel:
        wheel.extractall(HOME / release, filter(is_wanted, wheel.infolist()))
    local.unlink()


if __name__ == "__main__":  # the downloads: make .venv-headers/.fetched
    for each in RELEASES:
        start = time.monotonic()
        try:
            fetch(each)
        except (OSError, zipfile.BadZipFile) as error:
            sys.exit(f"the headers of torch {each} could not be fetched: {error}")
        print(f"headers of torch {each}: {time.monotonic() - start:.0f} s", flush=True)
