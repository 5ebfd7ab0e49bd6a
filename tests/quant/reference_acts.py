"""Integer activations from their definition, through the phases of spec/core.md 7.2."""

import torch
from reference_arithmetic import (
    at_least,
    best_candidate,
    bound_of,
    codes_of,
    int_threshold,
    learned_threshold,
    low_end,
    low_percentile,
    magnitude,
    min_max,
    no_margin,
    percentile,
    percentile_interval,
    stored,
    threshold_of,
    zero_point_of,
)

MOMENTUM = 0.1


def abs_max_row(rows):
    return rows.abs().max(dim=1).values


class ReferenceAct:
    """The state of one quantizer: running estimates, and once collected leaves in ``value`` (threshold, low end)."""

    def __init__(self, preset, bits, steps, momentum=MOMENTUM, statistic=None):
        self.preset, self.bits, self.steps, self.momentum = preset, bits, steps, momentum
        self.own_statistic = statistic
        self.running, self.count, self.value = None, 0, None

    def statistics(self, x):
        """(threshold, low end) of a batch."""
        rows, p = x.reshape(1, -1), self.preset
        if p.search:
            return self.searched(rows.detach())
        if self.own_statistic is not None:
            return self.own_statistic(rows), None
        if p.shifted:
            return percentile_interval(rows), low_percentile(rows)
        return percentile(rows), None

    def searched(self, rows):
        p = self.preset

        def quantized(rows, candidate, low):
            s = (threshold_of(candidate, p.restriction) / self.levels())[:, None]
            z = zero_point_of(low[:, None], s, self.bits) if p.shifted else torch.zeros_like(s)
            with no_margin():
                return (codes_of(rows, s, z, self.bits, p.signed, p.narrow) - z) * s

        low = low_end(rows)
        initial = min_max(rows) if p.shifted else abs_max_row(rows)
        stat = best_candidate(rows, initial, lambda x, candidate: quantized(x, candidate, low))
        if not p.shifted:
            return stat, None
        return stat, best_candidate(rows, low, lambda x, candidate: quantized(x, stat, candidate))

    def levels(self):
        return int_threshold(self.bits, self.preset.signed, self.preset.narrow, self.preset.restriction)

    def from_value(self, value):
        """(threshold, low end) of what is stored."""
        return learned_threshold(value[0], self.preset.restriction), None if value[1] is None else -magnitude(value[1])

    def stored_estimate(self):
        threshold, low = self.running if self.running is not None else (torch.ones(1).double(), torch.zeros(1).double())
        return [stored(threshold, self.preset.restriction), -low if self.preset.shifted else None]

    def train(self, x):
        if self.value is None and self.count < self.steps:
            threshold, low = self.statistics(x)
            threshold = at_least(threshold, bound_of(self.preset.restriction))
            self.collect(threshold.detach(), None if low is None else low.detach())
            return self.quantized(x, threshold_of(threshold, self.preset.restriction), low)
        if self.value is None:
            self.value = [None if v is None else v.clone().requires_grad_() for v in self.stored_estimate()]
        return self.quantized(x, *self.from_value(self.value))

    def collect(self, threshold, low):
        m = self.momentum if self.momentum is not None else 1.0 / (self.count + 1)
        if self.count == 0:
            self.running = (threshold, low)
        else:
            old = self.running
            self.running = (
                (1 - m) * old[0] + m * threshold,
                None if low is None else (1 - m) * old[1] + m * low,
            )
        self.count += 1

    def evaluate(self, x):
        return self.quantized(x, *self.from_value(self.stored_estimate() if self.value is None else self.value))

    def quantized(self, x, threshold, low):
        p = self.preset
        s = (threshold / self.levels()).reshape(())
        z = zero_point_of(low.reshape(()), s, self.bits) if p.shifted else torch.zeros(()).double()
        q = codes_of(x, s, z, self.bits, p.signed, p.narrow)
        return (q - z) * s, s, z, q

    def leaves(self):
        return [v for v in self.value if v is not None]

    def move(self):
        """As an optimizer would: a smaller threshold, so that values are clamped, and another low end."""
        with torch.no_grad():
            if self.preset.restriction == "FP":
                self.value[0].mul_(-0.6)  # across 0: the absolute value counts
            else:
                self.value[0].sub_(1.1)
            if self.value[1] is not None:
                self.value[1].mul_(0.7)
