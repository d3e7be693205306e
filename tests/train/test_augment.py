import torch

from fastff.train.augment import augment


def test_an_image_is_shifted_and_flipped_but_never_changed_inside():
    torch.manual_seed(0)
    image = torch.arange(1.0, 26).view(1, 1, 5, 5).expand(64, 1, 5, 5)
    found = augment(image, padding=1)
    assert found.shape == image.shape
    padded = torch.nn.functional.pad(image[:1], (1, 1, 1, 1))
    views = [flip[..., r : r + 5, c : c + 5] for flip in (padded, padded.flip(-1)) for r in range(3) for c in range(3)]
    which = [[torch.equal(sample, view[0]) for view in views] for sample in found]
    assert all(any(row) for row in which)
    assert sum(any(column) for column in zip(*which, strict=True)) > 12  # 64 draws of 18 views


def test_zero_padding_only_flips():
    x = torch.randn(8, 3, 4, 6)
    found = augment(x, padding=0)
    assert all(torch.equal(f, s) or torch.equal(f, s.flip(-1)) for f, s in zip(found, x, strict=True))
