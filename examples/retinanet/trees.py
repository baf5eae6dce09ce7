# Owns where the aerial photographs come from: the wheel, its checksum, the boxes in the annotation.
# Must not know crops, anchors or tensors.
"""853 tree crowns drawn by hand in two aerial photographs (NEON, Yellowstone 2019, .1 m per pixel), of the package
deepforest (MIT)."""

import hashlib
import io
from xml.etree import ElementTree

import numpy

from .data import DataError, Photograph, fetch_wheel, read_member

PACKAGE = "deepforest==2.1.0"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"  # of the whole wheel
LARGE, SMALL = "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop"


def load_trees(cache):
    """(large, small) photographs, [height, width, 3] uint8 each; the package is read as a zip and never imported."""
    wheel = fetch_wheel(cache, PACKAGE)
    check(wheel, SHA256)
    return tuple(photograph(wheel, f"deepforest/data/{name}") for name in (LARGE, SMALL))


def check(wheel, sha256):
    got = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if got != sha256:
        raise DataError(f"{wheel} has sha256 {got}, expected {sha256}; delete the file, it is fetched again")


def photograph(wheel, member):
    from PIL import Image  # here, because everything else in this file can be used and tested without it

    pixels = numpy.asarray(Image.open(io.BytesIO(read_member(wheel, f"{member}.png", sha256=None))).convert("RGB"))
    return Photograph(pixels, boxes_of_annotation(read_member(wheel, f"{member}.xml", sha256=None)))


def boxes_of_annotation(content):
    """[objects, 4] boxes of a Pascal VOC annotation, whose ends are taken as exclusive: x2 of one box is x1 of its
    neighbour."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(box.findtext(side)) for side in sides] for box in ElementTree.fromstring(content).iter("bndbox")]
    return numpy.array(boxes, dtype=numpy.float32).reshape(-1, 4)
