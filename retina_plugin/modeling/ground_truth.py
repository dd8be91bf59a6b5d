"""Checks the ground truth of a batch, before anything moves to a GPU."""

from typing import Any


def check_ground_truth(batched_inputs: list[dict[str, Any]], num_classes: int) -> None:
    """Check that images have ground truth whose classes exist. On a GPU, a wrong class is an assertion without a name.

    Args:
        batched_inputs: images as a detector takes them.
        num_classes: K, without background.

    Raises:
        ValueError: an image without ``instances`` or with a class outside 0..K-1.
    """
    for i, image in enumerate(batched_inputs):
        name = image.get("file_name", f"number {i} of the batch")
        if "instances" not in image:
            raise ValueError(f"image {name} has no 'instances': training needs ground truth")
        classes = image["instances"].gt_classes
        if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(
                f"image {name} has class {classes.min().item()}..{classes.max().item()}, but the model has classes "
                f"0..{num_classes - 1} (MODEL.RETINANET.NUM_CLASSES is {num_classes}). Set it to the data set's number "
                "of classes, and map category ids to 0..K-1."
            )
