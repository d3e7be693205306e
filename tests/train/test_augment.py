import torch

from fastff.train.augment import augment


def test_an_image_is_shifted_and_flipped_but_never_changed_inside():
    torch.manual_seed(0)
    image = torch.arange(1.0, 26).view(1, 1, 5, 5).expand(64, 1, 5, 5)
    found = augment(image, shift=1, flip=True)
    assert found.shape == image.shape
    padded = torch.nn.functional.pad(image[:1], (1, 1, 1, 1))
    views = [flip[..., r : r + 5, c : c + 5] for flip in (padded, padded.flip(-1)) for r in range(3) for c in range(3)]
    which = [[torch.equal(sample, view[0]) for view in views] for sample in found]
    assert all(any(row) for row in which)
    assert sum(any(column) for column in zip(*which, strict=True)) > 12  # 64 draws of 18 views


def test_flipping_alone_does_not_shift_and_shifting_alone_does_not_flip():
    x = torch.randint(1, 256, (64, 3, 4, 6), dtype=torch.uint8)
    flipped = augment(x, flip=True)
    assert all(torch.equal(f, s) or torch.equal(f, s.flip(-1)) for f, s in zip(flipped, x, strict=True))
    assert not torch.equal(flipped, x)
    same = [torch.equal(f, s) for f, s in zip(augment(x, shift=1), x, strict=True)]
    assert 0 < sum(same) < 32  # one draw in nine moves by nothing
    assert torch.equal(augment(x), x)
