"""Random images and boxes with the sizes of COCO's.

Everything is drawn from a generator with a fixed seed: all sides, in whatever process, get the same inputs.
"""

import math

import torch
from detectron2.structures import Boxes, Instances

# Sizes of images (height, width) are those after padding.
STRIDES = (8, 16, 32, 64, 128)


def picture_shape(size):
    """(height, width) of a 3 : 5 image with a given shorter side, padded to multiples of 32: 800 -> (800, 1344)."""
    return 32 * math.ceil(size / 32), 32 * math.ceil(size * 5 / 3 / 32)


def shape_name(size):
    """:func:`picture_shape` for a table."""
    return "{}x{}".format(*picture_shape(size))


def level_shapes(size):
    """(height, width) of P3 to P7 for an image of :func:`picture_shape`."""
    return [tuple(math.ceil(side / stride) for side in picture_shape(size)) for stride in STRIDES]


def generator(seed=0):
    """A generator on the CPU; inputs are drawn there and moved, so that they are the same on every device."""
    return torch.Generator().manual_seed(seed)


def batch(size, images, boxes, num_classes):
    """``images`` inputs as Detectron2's ``DatasetMapper`` makes them, of :func:`picture_shape`, on the CPU."""
    random = generator()
    height, width = picture_shape(size)
    inputs = []
    for _ in range(images):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(_boxes(boxes, height, width, random))
        instances.gt_classes = torch.randint(num_classes, (boxes,), generator=random)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random)
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def _boxes(count, height, width, random):
    # Of COCO's boxes, 41 % are smaller than 32 x 32 pixels and 24 % larger than 96 x 96, in images 480 pixels high:
    # the log-normal distribution with these two quantiles has median 41.8 and sigma 1.18.
    side = 41.8 / 480 * height * torch.exp(1.18 * torch.randn(count, generator=random))
    stretch = torch.exp(0.4 * torch.randn(count, generator=random))
    image = torch.tensor([width, height])
    size = torch.stack([side * stretch, side / stretch], dim=1).clamp(min=4.0).minimum(0.95 * image)
    corner = torch.rand(count, 2, generator=random) * (image - size)
    return torch.cat([corner, corner + size], dim=1)
