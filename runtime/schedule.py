"""The learning rate as a pure function of the step."""

import math

from runtime.sections import Schedule


def lr_ratio(schedule: Schedule, step: int, total_steps: int) -> float:
    """Learning rate ÷ peak for the step with this index (0-based).

    Warm-up is linear and its last step reaches the peak; cosine (Loshchilov & Hutter 2017) and
    linear (Devlin et al. 2019, BERT) fall to `min_ratio` over the rest of the run; wsd stays at the
    peak, then falls linearly over `decay_steps` (Hägele et al. 2024).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    decay_steps = total_steps - 1 - schedule.warmup_steps
    if schedule.kind == "wsd":
        decay_steps = wsd_decay(schedule, total_steps)
    progress = _fraction(step - (total_steps - 1 - decay_steps), decay_steps)
    if schedule.kind == "cosine":
        return schedule.min_ratio + (1 - schedule.min_ratio) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
    return 1.0 - (1 - schedule.min_ratio) * progress


def wsd_decay(schedule: Schedule, total_steps: int) -> int:
    """Steps of wsd's decay: the last ones of the run."""
    return schedule.decay_steps or max(1, total_steps // 5)


def _fraction(done: int, whole: int) -> float:
    return min(1.0, max(0.0, done / whole)) if whole > 0 else 1.0
