"""The images of a data set as inputs, and the category ids of results."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from retina_plugin.core.errors import ConfigError
from retina_plugin.core.plain import as_python
from retina_plugin.data.class_names import first_difference
from retina_plugin.data.dataset_checks import check_datasets
from retina_plugin.data.loading import explain_loading
from retina_plugin.runtime.inputs import Source
from retina_plugin.tools.predict.results import Category


def sources_of(name: str) -> list[Source]:
    """Return the images of a registered data set with their ids.

    Raises:
        ConfigError: the data set is not registered or cannot be loaded.
    """
    check_datasets([name])
    with explain_loading("--dataset", [name]):
        records = DatasetCatalog.get(name)
    return [
        Source(record["file_name"], record["file_name"], image_id=as_python(record.get("image_id")))
        for record in records
    ]


def categories_of(cfg: CfgNode, data_set: str | None, class_names: Sequence[str]) -> list[Category]:
    """Return id and name of each class, by label.

    The ids are those of the data set that is predicted on; or of the first test set that has its ids without being
    loaded, as COCO has; or 1 to K.

    Raises:
        ConfigError: the data set has other classes than the model.
    """
    if data_set and (named := MetadataCatalog.get(data_set).get("thing_classes")):
        difference = first_difference(class_names, named)
        if difference is not None:
            label, ours, theirs = difference
            raise ConfigError([
                f"data set '{data_set}' has other classes than the model: label {label} is {ours} in the model and "
                f"{theirs} in the data set. Name its images or their folder instead, without the data set"
            ])  # fmt: skip
    for name in (data_set, *cfg.DATASETS.TEST):
        labels = name in DatasetCatalog and MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
        if labels and sorted(labels.values()) == list(range(len(class_names))):
            ids = {label: category_id for category_id, label in labels.items()}
            return [Category(ids[label], class_name) for label, class_name in enumerate(class_names)]
    return [Category(label + 1, class_name) for label, class_name in enumerate(class_names)]
