"""Every element keeps its class and its label, whatever the memory order."""

import pytest
import torch

from retina_plugin.losses.fused.layout import as_planes, dense, labels_as_planes


def layouts():
    n, a, k, h, w = torch.randint(1, 5, (5,)).tolist()
    head_output = torch.empty(n, a * k, h, w)
    yield "NCHW", head_output.unflatten(1, (a, k)).permute(0, 3, 4, 1, 2), h * w
    channels_last = head_output.contiguous(memory_format=torch.channels_last)
    yield "channels_last", channels_last.unflatten(1, (a, k)).permute(0, 3, 4, 1, 2), 1
    yield "matrix", torch.empty(n * a, k), 1
    yield "transposed matrix", torch.empty(k, n * a).t(), n * a
    yield "one anchor", torch.empty(k), 1
    yield "any order", torch.empty(n, k, a, h, w).permute(3, 0, 2, 4, 1), a * h * w
    yield "every second", torch.empty(n, h, w, a, 2 * k)[..., ::2], 1
    yield "expanded", torch.empty(1, h, 1, k).expand(n, h, w, k), 1


@pytest.mark.parametrize("repeat", range(5))
def test_classes_and_labels_stay_with_their_element(repeat):
    for name, like, inner in layouts():
        num_classes = like.shape[-1]
        like = dense(like)
        rows = torch.arange(like.numel() // num_classes).view(like.shape[:-1])
        x = torch.empty_like(like, dtype=torch.int64)
        x.copy_(num_classes * rows[..., None] + torch.arange(num_classes))
        planes, labels = as_planes(x, like), labels_as_planes(rows, like)
        assert planes.data_ptr() == x.data_ptr() and planes.is_contiguous(), name
        assert planes.shape[1] == num_classes and labels.shape == (planes.shape[0], planes.shape[2]), name
        assert torch.equal(planes // num_classes, labels[:, None, :].expand_as(planes)), name
        assert torch.equal(planes % num_classes, torch.arange(num_classes)[:, None].expand_as(planes)), name
        if min(like.shape) > 1:
            assert planes.shape[2] == inner, name


def test_only_memory_with_gaps_or_overlaps_is_copied():
    for name, x, _ in layouts():
        strided = name in ("every second", "expanded") and x.permute(0, 1, *range(2, x.dim())).is_contiguous() is False
        assert (dense(x) is x) == (not strided), name
        assert dense(x).shape == x.shape and torch.equal(torch.nan_to_num(dense(x)), torch.nan_to_num(x))
