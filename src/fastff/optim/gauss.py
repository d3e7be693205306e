"""Gauss quadrature from moments, for many measures at once."""

import math

import torch
from torch import Tensor

NARROW_VARIANCE = 3e-4  # up to which two nodes of quadrature suffice


def gauss_quadrature(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of measures with moments 0 to 5 (6, U), float64: weights and nodes, (2, U) or (3, U).

    The nodes are the roots of the orthogonal polynomial of degree 3, or of degree 2 where the measures are narrow: what
    that misses of a sigmoid's integral is less than the fourth power of the standard deviation.
    """
    total = moments[0]
    mean, r2, r3, r4, r5 = moments[1:] / total.clamp_min(1e-200)
    square = mean * mean
    variance = (r2 - square).clamp_min_(1e-10)  # that of a single step is 0
    deviation = variance.sqrt()
    skewness = (r3 - mean * (3 * r2 - 2 * square)) / (variance * deviation)
    narrow = variance < NARROW_VARIANCE
    if narrow.all():  # the roots of x^2 - skewness x - 1
        half = skewness / 2
        radius = (half * half + 1).sqrt_()
        x = torch.stack([half - radius, half + radius])
        weights = 1 / (1 + x * x)
    else:  # p1 = x, p2 = x p1 - skewness x - 1, p3 = (x - a) p2 - b x; any a and b > 0 match the moments 0 to 3
        c4 = (r4 - 4 * mean * r3 + square * (6 * r2 - 3 * square)) / variance**2
        c5 = (r5 - 5 * mean * r4 + square * (10 * r3 - mean * (10 * r2 - 4 * square))) / (variance**2 * deviation)
        b = (c4 - skewness**2 - 1).clamp_min_(1e-6).masked_fill_(narrow, 1)
        a = ((c5 - 2 * skewness * c4 + skewness**3) / b).masked_fill_(narrow, 0)
        third, slope = (a + skewness) / 3, a * skewness - 1 - b
        # With x = t + third, p3 = t^3 - 3 radius^2 t + constant, which has three real roots: Viete's formula.
        radius = (third**2 - slope / 3).sqrt()
        constant = third * (slope - 2 * third**2) + a
        angle = torch.acos((constant / (-2 * radius**3)).clamp_(-1, 1)) / 3
        turns = torch.arange(3, device=total.device).unsqueeze(-1) * (2 * math.pi / 3)
        x = third + 2 * radius * torch.cos(angle - turns)
        weights = 1 / (1 + x**2 + (x**2 - skewness * x - 1) ** 2 / b)
    return weights * (total / weights.sum(0)), mean + deviation * x
