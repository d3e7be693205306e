"""Augmentation of image batches on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, *, shift: int = 0, flip: bool = False) -> Tensor:
    """Move each image by up to `shift` pixels at random, sideways and up or down, and flip half of them left to right.

    Args:
        x: (B, C, H, W), raw: what comes in from outside is 0.
        shift: pixels, 0 or more.
        flip: whether to flip.

    Returns:
        (B, C, H, W), drawn with PyTorch's global generator.
    """
    B, C, H, W = x.shape
    if flip:
        x = torch.where(torch.rand(B, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
    if not shift:
        return x
    padded = F.pad(x, (shift,) * 4)
    top, left = torch.randint(2 * shift + 1, (2, B, 1), device=x.device)
    rows = (top + torch.arange(H, device=x.device)).view(B, 1, H, 1).expand(B, C, H, W + 2 * shift)
    columns = (left + torch.arange(W, device=x.device)).view(B, 1, 1, W).expand(B, C, H, W)
    return padded.gather(2, rows).gather(3, columns)
