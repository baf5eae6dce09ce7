# Owns how a training crop is drawn from the scenes: where, how large, turned or not.
# Must not know anchors, labels' meaning or models.

import torch
from torch.nn import functional as F

from .scenes import Scene, turned, window

CHOICES = ("none", "crop", "scale", "flip")
SCALE = 2**0.5  # a scaled crop shows its objects between 1 / SCALE and SCALE of their size


def draw(scenes, size, how, generator):
    """One crop of size x size from one of the scenes, each as likely as its area.

    how: any of CHOICES. "none": one of the windows of a fixed grid, as it is. "crop": a window at any place. "scale":
    any place, and a window of another size, resized. "flip": mirrored and transposed, the eight views of a square. They
    add up; "none" stands alone.
    """
    areas = torch.tensor([float(scene.image.shape[-1] * scene.image.shape[-2]) for scene in scenes])
    scene = scenes[int(torch.multinomial(areas, 1, generator=generator))]
    height, width = scene.image.shape[-2:]
    side = size
    if "scale" in how:
        factor = SCALE ** (2 * float(torch.rand((), generator=generator)) - 1)
        side = min(round(size * factor), height, width)
    if "crop" in how or "scale" in how:
        top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in (height, width))
    else:
        top, left = (side * int(torch.randint(length // side, (), generator=generator)) for length in (height, width))
    crop = resized(window(scene, left, top, left + side, top + side), size)
    if "flip" in how:
        crop = turned(crop, *torch.randint(2, (3,), generator=generator).bool().tolist())
    return crop


def resized(scene, size):
    side = scene.image.shape[-1]
    if side == size:
        return scene
    image = F.interpolate(scene.image[None], size=(size, size), mode="bilinear", antialias=True)[0]
    return Scene(image, scene.boxes * (size / side), scene.labels, scene.ignored * (size / side))
