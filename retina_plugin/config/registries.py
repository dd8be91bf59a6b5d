"""The plugin's registries, and the configuration keys that choose from them.

They live below the packages that fill them, so that configuration checks can look a name up without importing a model.
"""

from fvcore.common.registry import Registry

RETINANET_HEAD_REGISTRY = Registry("RETINANET_HEAD")
ASSIGNER_REGISTRY = Registry("ASSIGNER")
BOX_CODER_REGISTRY = Registry("BOX_CODER")
BOX_LOSS_REGISTRY = Registry("BOX_LOSS")
CLASSIFICATION_LOSS_REGISTRY = Registry("CLASSIFICATION_LOSS")

REGISTRY_OF_KEY = {
    "MODEL.RETINANET.HEAD_NAME": RETINANET_HEAD_REGISTRY,
    "MODEL.RETINANET.ASSIGNER": ASSIGNER_REGISTRY,
    "MODEL.RETINANET.BOX_CODER": BOX_CODER_REGISTRY,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": BOX_LOSS_REGISTRY,
    "MODEL.RETINANET.CLS_LOSS": CLASSIFICATION_LOSS_REGISTRY,
}
