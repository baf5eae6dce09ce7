# Owns the network: a small residual backbone, a feature pyramid, the two heads of RetinaNet (Lin et al. 2017).
# Must not know labels, losses or the sizes of anchors beyond how many there are per cell.

import torch
from torch import nn
from torch.nn import functional as F

import focal_ext


# GroupNorm scales every image by itself, whatever else is in the batch. Where contrast tells objects from background
# that loses what one wants to know: a crop of bare grass then looks as rough as one of trees. BatchNorm scales all
# images alike.
NORMS = {"group": lambda channels: nn.GroupNorm(8, channels), "batch": nn.BatchNorm2d}


def conv(inputs, outputs, norm, stride=1, kernel=3):
    """Convolution, normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), NORMS[norm](outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    def __init__(self, inputs, outputs, norm):
        super().__init__()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)
        self.body = nn.Sequential(conv(inputs, outputs, norm, stride=2), conv(outputs, outputs, norm))

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


class Pyramid(nn.Module):
    """Lateral 1x1 convolutions and a top-down path; every level comes out with `channels` channels."""

    def __init__(self, widths, channels, norm):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(conv(channels, channels, norm) for _ in widths)

    def forward(self, maps):
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps)]
        for fine in reversed(range(len(levels) - 1)):
            # To the size of the finer level, not by 2: then images of any size fit.
            levels[fine] = levels[fine] + F.interpolate(levels[fine + 1], size=levels[fine].shape[-2:])
        return [smooth(x) for smooth, x in zip(self.smooth, levels)]


def head(channels, depth, outputs, norm):
    return nn.Sequential(
        *(conv(channels, channels, norm) for _ in range(depth)), nn.Conv2d(channels, outputs, 3, padding=1)
    )


def rows(maps, values):
    """[B, A * values, H, W] of each level -> [B, N, values], in the order of anchors.grid_anchors."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, values) for x in maps], dim=1)


class RetinaNet(nn.Module):
    """images [B, in_channels, H, W] -> (logits [B, N, num_classes], box codes [B, N, 4]) on strides 8, 16 and 32."""

    def __init__(
        self,
        num_classes=1,
        in_channels=1,
        anchors_per_cell=9,
        depth=2,
        widths=(24, 48, 64, 96, 128),
        channels=64,
        norm="group",
    ):
        super().__init__()
        self.num_classes = num_classes
        self.stem = conv(in_channels, widths[0], norm, stride=2)
        self.stages = nn.ModuleList(Residual(a, b, norm) for a, b in zip(widths, widths[1:]))
        self.pyramid = Pyramid(widths[2:], channels, norm)
        self.classify = head(channels, depth, anchors_per_cell * num_classes, norm)
        self.regress = head(channels, depth, anchors_per_cell * 4, norm)
        for final in (self.classify[-1], self.regress[-1]):
            nn.init.normal_(final.weight, std=0.01)
            nn.init.zeros_(final.bias)
        # Every anchor starts at p = 0.01: without it the sum over the many negatives drowns the first steps.
        focal_ext.init_prior_(self.classify[-1], prior=0.01)

    def levels(self, images):
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.pyramid(maps[1:])

    def towers(self, images):
        """(the feature maps that the last convolution of classification reads, box codes [B, N, 4])."""
        levels = self.levels(images)
        return [self.classify[:-1](x) for x in levels], rows([self.regress(x) for x in levels], 4)

    def forward(self, images):
        levels = self.levels(images)
        return rows([self.classify(x) for x in levels], self.num_classes), rows([self.regress(x) for x in levels], 4)


def build(seed, **arguments):
    """A RetinaNet whose weights depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RetinaNet(**arguments)
