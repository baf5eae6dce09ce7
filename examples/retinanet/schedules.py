# Owns the course of the learning rate, as a factor of its largest value.
# Must not know the optimizer or the model.

import math


def cosine(step, steps, period):
    return (1 + math.cos(math.pi * step / steps)) / 2


def restarts(step, steps, period):
    """Cosine with warm restarts (Loshchilov and Hutter 2017): every period falls from 1 to 0 anew."""
    return cosine(step % period, period, period)


def constant(step, steps, period):
    return 1.0


FACTORS = {"constant": constant, "cosine": cosine, "restarts": restarts}


def factor(step, settings):
    """Of the step that comes after `step` others. The warm-up multiplies: 1/n, 2/n, ... in its n steps."""
    rising = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return rising * FACTORS[settings.schedule](step, settings.steps, settings.restart_epochs * settings.epoch_steps)
