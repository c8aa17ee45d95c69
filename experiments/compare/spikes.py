"""Loss spikes, counted."""

import math
from collections.abc import Sequence
from statistics import median

WINDOW = 50  # steps before a step that it is judged by
LEAST = 20  # steps before the first one that is judged
DEVIATIONS = 6.0


def find_spikes(losses: Sequence[float]) -> list[int]:
    """Return the steps at which loss spikes begin.

    A step is high where its training loss exceeds the median of the 50 steps before it by more than 6 deviations, or is not finite. The
    deviation is 1.4826 times the median distance of those 50 from their median, which is the standard deviation of normal noise. High
    steps that follow one another are one spike. The first 20 steps are not judged; while the loss falls fast the deviation is wide, and
    only large spikes count.

    Args:
        losses: The training loss of every step.

    Example:
        >>> calm = [2.0 + 0.1 * (-1) ** step for step in range(60)]
        >>> find_spikes(calm), find_spikes([*calm, 4.0, 3.5, *calm[:10], 5.0])
        ([], [60, 72])
    """
    starts: list[int] = []
    was_high = False
    for step in range(LEAST, len(losses)):
        before = [loss for loss in losses[max(0, step - WINDOW) : step] if math.isfinite(loss)]
        high = not math.isfinite(losses[step])
        if not high and before:
            centre = median(before)
            deviation = 1.4826 * median(abs(loss - centre) for loss in before)
            high = losses[step] > centre + DEVIATIONS * deviation
        if high and not was_high:
            starts.append(step)
        was_high = high
    return starts
