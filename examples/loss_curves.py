# Owns docs/loss_curves.png: loss and gradient of cross entropy and focal loss against p_t.
# Must not know the formula: the curves are focal_ext's own values and gradients.
"""python -m examples.loss_curves [--out docs/loss_curves.png]: figure 1 of Lin et al. 2017, and the gradients beside
it."""

import argparse
from pathlib import Path

import torch

import focal_ext

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
COLOURS = ("#1b3a5c", "#56b4e9", "#009e73", "#e69f00", "#d55e00")  # Okabe and Ito's, told apart by every kind of eye


def curve(gamma, p_t):
    """(loss, d loss / d logit) of a positive that the network gives the probability p_t."""
    logits = torch.logit(p_t).requires_grad_()
    loss = focal_ext.sigmoid_focal_loss(
        logits[:, None], torch.zeros(len(p_t), dtype=torch.int64), alpha=None, gamma=gamma
    )[:, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def draw(path):
    import matplotlib

    matplotlib.use("Agg")  # a file only: works where there is no display
    from matplotlib import pyplot

    p_t = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for gamma, colour in zip(GAMMAS, COLOURS):
        name = "cross entropy (gamma 0)" if gamma == 0 else f"focal loss, gamma {gamma:g}"
        loss, gradient = curve(gamma, p_t)
        for axis, values in zip(axes, (loss, loss, -gradient)):
            axis.plot(p_t, values, color=colour, label=name, linewidth=1.6)
    axes[0].set(title="loss", ylim=(0, 5))
    axes[1].set(title="the same, well classified examples", xlim=(0.5, 1), yscale="log", ylim=(1e-6, 1))
    axes[2].set(title="gradient by the logit, its size", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    for axis in axes:
        axis.set_xlabel("p_t, the probability of the truth")
        axis.grid(alpha=0.25)
    # without a version in it the same curves are the same file
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/loss_curves.png"))
    draw(parser.parse_args().out)
