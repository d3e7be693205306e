"""Augmentation of image batches on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, padding: int = 4) -> Tensor:
    """Flip half of the images left to right, and crop each at random after padding with zeros.

    Args:
        x: (B, C, H, W).
        padding: pixels on each side.

    Returns:
        (B, C, H, W), drawn with PyTorch's global generator.
    """
    B, C, H, W = x.shape
    x = torch.where(torch.rand(B, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
    padded = F.pad(x, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, B, 1), device=x.device)
    rows = (top + torch.arange(H, device=x.device)).view(B, 1, H, 1).expand(B, C, H, W + 2 * padding)
    columns = (left + torch.arange(W, device=x.device)).view(B, 1, 1, W).expand(B, C, H, W)
    return padded.gather(2, rows).gather(3, columns)
