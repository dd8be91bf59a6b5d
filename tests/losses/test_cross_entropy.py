"""Cross entropy against torch's, on one-hot targets."""

import torch
from torch.nn import functional as F

from retina_plugin.losses import sigmoid_cross_entropy_loss

from .closed_forms import random_case, value_and_gradient


def test_equals_binary_cross_entropy_of_counted_anchors():
    logits, labels = random_case()
    counted = labels >= 0
    targets = F.one_hot(labels[counted], 8)[:, :7].float()
    expected = F.binary_cross_entropy_with_logits(logits[counted], targets, reduction="sum")
    expected, expected_gradient = value_and_gradient(expected, logits)
    loss, gradient = value_and_gradient(sigmoid_cross_entropy_loss(logits, labels), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
