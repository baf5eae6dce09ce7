# Owns how close two training runs lie, and how close is close enough.
# Must not know how either was trained.
"""Two losses that differ by a rounding are two slightly different trainings: the rounding grows with every step, as it
does for any change of thread count. So four questions, each with its own limit:

same_logits     both losses of the same logits (made from the same feature maps), over all steps: rounding, nothing to
grow. same_gradients  their gradients of those feature maps, relative to the largest. Curves alone would not do: Adam
hides a factor on the gradient. early           the two runs' curves over the first steps, before rounding has grown.
end             means over the last steps: single steps differ by per cents there, the level must not.
"""

import math

EARLY, LAST = 10, 20
LIMITS = {"same_logits": 1e-5, "same_gradients": 1e-5, "early": 1e-2, "end": 0.1}


def relative_differences(ours, theirs):
    return [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True)]


def agreement(fused, reference):
    """The four answers and the largest difference of any step, all relative, from two histories of training.train."""
    curves = relative_differences(fused.loss, reference.loss)
    ends = [sum(history.loss[-LAST:]) / len(history.loss[-LAST:]) for history in (fused, reference)]
    return {
        "same_logits": worst(relative_differences(fused.focal, fused.twin)),
        "same_gradients": worst(fused.gradient_difference),
        "early": worst(curves[:EARLY]),
        "end": relative_differences(*([end] for end in ends))[0],
        "largest": worst(curves),
    }


def worst(values):
    """The largest; NaN if any is NaN, which max() would drop or keep by its place."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def complaints(figures):
    """One sentence for each limit that is exceeded; NaN exceeds every limit."""
    return [
        f"fused and reference differ by {figures[name]:.2g} ({name}), allowed is {limit:.0e}"
        for name, limit in LIMITS.items()
        if not figures[name] <= limit
    ]
