# Owns how a loss is spread over examples: which share of it the hardest few carry (Lin et al. 2017, figure 4).
# Must not know where logits come from.

import torch

import focal_ext

from .matcher import BACKGROUND

GAMMAS = (0.0, 0.5, 1.0, 2.0)
SHARES = (0.01, 0.05, 0.2)


def losses_of(logits, targets, gamma, positives=False):
    """The focal losses of all negatives (or positives), largest first, in float64. logits [..., C], targets [...];
    alpha only scales them."""
    chosen = targets >= 0 if positives else targets == BACKGROUND
    losses = focal_ext.sigmoid_focal_loss(logits[chosen].double(), targets[chosen], alpha=None, gamma=gamma)
    return losses.sum(dim=-1).sort(descending=True).values


def share_of_hardest(losses, share):
    """The part of the sum that the first `share` of sorted losses carries; at least one of them."""
    count = max(1, round(share * len(losses)))
    return float(losses[:count].sum() / losses.sum())


def table(logits, targets, positives=False):
    """{gamma: [share of the loss in the hardest SHARES of the examples]}"""
    return {
        gamma: [share_of_hardest(losses_of(logits, targets, gamma, positives), share) for share in SHARES]
        for gamma in GAMMAS
    }


def draw(path, logits, targets):
    """Cumulative loss over the examples, easiest first, of positives and negatives."""
    import matplotlib

    matplotlib.use("Agg")  # a file only: works where there is no display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, positives in zip(axes, (True, False)):
        for gamma, colour in zip(GAMMAS, ("#1b3a5c", "#56b4e9", "#009e73", "#e69f00")):
            losses = losses_of(logits, targets, gamma, positives).flip(0)
            axis.plot(
                torch.linspace(0, 1, len(losses)),
                losses.cumsum(0) / losses.sum(),
                color=colour,
                label=f"gamma {gamma:g}",
            )
        axis.set(
            title=f"{len(losses):,} {'positives' if positives else 'negatives'}",
            xlabel="share of the examples, easiest first",
            ylabel="share of the loss",
            xlim=(0, 1) if positives else (0.8, 1),
            ylim=(0, 1),
        )
        axis.locator_params("x", nbins=5)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
