# Owns the pictures: detections beside the truth, the curves of both runs.
# Must not know the model or how anything was computed.

import matplotlib

matplotlib.use("Agg")  # files only: the demo also runs where there is no display

from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from .agreement import relative_differences
from .verdicts import FALSE_ALARM, HIT, NOT_COUNTED, judge

# Okabe and Ito's colours, told apart by every kind of eye.
TRUTH, MISSED = "#56b4e9", "missed"
STYLES = {
    HIT: ("#2bd9a0", "-"),
    FALSE_ALARM: ("#ff7043", "-"),
    MISSED: ("#f0e442", "--"),
    NOT_COUNTED: ("#b8b8b8", ":"),
}
FUSED, REFERENCE = "#e69f00", "#1b3a5c"
SHOWN_SCORE = 0.5


def _outline(axes, box, color, line):
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(
        Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=color, linestyle=line, linewidth=1.4)
    )


def draw_detections(path, scene, detections, min_score=SHOWN_SCORE):
    """One column for the truth and one per entry of detections {name: Detections}."""
    height, width = scene.image.shape[-2:]
    columns = 1 + len(detections)
    figure, axes = pyplot.subplots(
        1, columns, figsize=(columns * 3.3, 3.3 * height / width + 0.7), layout="constrained"
    )
    for axis in axes:
        # Nuclei are far brighter than their background and one is far brighter than all others: without vmax it alone
        # is white.
        axis.imshow(scene.image[0], cmap="gray", vmin=-1.6, vmax=4.0)
        axis.set_axis_off()
    for box in scene.boxes:
        _outline(axes[0], box, TRUTH, "-")
    for box in scene.ignored:
        _outline(axes[0], box, *STYLES[NOT_COUNTED])
    axes[0].set_title(f"truth: {len(scene.boxes)} objects", fontsize=10)
    for axis, (name, found) in zip(axes[1:], detections.items()):
        judged, missed = judge(scene, found, min_score)
        for box in missed:
            _outline(axis, box, *STYLES[MISSED])
        for box, score, verdict in judged:
            _outline(axis, box, *STYLES[verdict])
            if verdict != NOT_COUNTED:
                below = box[1] < 8  # no room above the box: inside
                axis.text(
                    box[0] + 1,
                    box[1] + (1 if below else -2),
                    f"{score:.2f}".lstrip("0"),
                    color=STYLES[verdict][0],
                    fontsize=6.5,
                    zorder=3,
                    va="top" if below else "baseline",
                    path_effects=[withStroke(linewidth=1.5, foreground="black")],
                    clip_on=True,
                )
        hits = sum(verdict == HIT for *_, verdict in judged)
        alarms = sum(verdict == FALSE_ALARM for *_, verdict in judged)
        axis.set_title(f"{name}: {hits} hits, {alarms} false, {len(missed)} missed", fontsize=10)
    handles = [
        Line2D([], [], color=color, linestyle=line, label=label)
        for label, (color, line) in {"truth": (TRUTH, "-"), **STYLES}.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5,
        fontsize=9,
        facecolor="#404040",
        labelcolor="white",
        title=f"hold-out, scores of {min_score} and more, IoU .5; not counted: cut off by the border of the hold-out",
        title_fontsize=8,
    ).get_title().set_color("white")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_curves(path, fused, reference, needed_ap50):
    """Loss, relative difference and AP50 over the steps, from two histories of training.train."""
    figure, (loss, difference, precision) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    steps = range(1, len(fused.loss) + 1)
    # The wide light line lies under the thin dark one: where they agree, both stay visible.
    looks = [(fused, "fused", FUSED, 3.5), (reference, "reference", REFERENCE, 1.0)]
    for history, name, color, width in looks:
        loss.plot(steps, history.loss, color=color, linewidth=width, label=name)
        precision.plot(*zip(*history.ap50), color=color, linewidth=width, label=name)
    loss.set(title="training loss", xlabel="step", yscale="log")
    loss.minorticks_off()
    ticks = [0.1, 0.2, 0.5, 1, 2]
    loss.set_yticks(ticks, [str(tick) for tick in ticks])
    floor = 1e-8  # equal to the last bit has no place on a logarithmic axis
    curves = [max(x, floor) for x in relative_differences(fused.loss, reference.loss)]
    same = [(step, x) for step, x in zip(steps, relative_differences(fused.focal, fused.twin)) if x]
    difference.plot(steps, curves, color="#0072b2", linewidth=1, label="the two runs")
    equal = f"equal in {len(steps) - len(same)} of {len(steps)}"
    difference.plot(
        *zip(*same) if same else ([], []),
        "o",
        color="#009e73",
        markersize=2,
        label=f"both losses on the same logits, {equal}",
    )
    difference.set(title="relative difference of the loss", xlabel="step", yscale="log", ylim=(floor, 1))
    precision.set(title="AP50 on the hold-out", xlabel="step", ylim=(0, 1))
    precision.axhline(needed_ap50, color="grey", linewidth=1, linestyle=":", label=f"needed at the end: {needed_ap50}")
    for axis in (loss, difference, precision):
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
