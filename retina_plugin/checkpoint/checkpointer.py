"""Detectron2's checkpointer with safe reading, strict loading and atomic writing."""

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from retina_plugin.checkpoint.foreign import foreign_kinds
from retina_plugin.checkpoint.load_plan import LoadPlan
from retina_plugin.checkpoint.reader import read_checkpoint
from retina_plugin.checkpoint.weights_only import to_weights_only
from retina_plugin.core.errors import CheckpointError, FileError
from retina_plugin.core.files import atomic_write, remove_unfinished, require_regular_file
from retina_plugin.core.text import list_some

_LONGEST_NAME = 255  # bytes, of a file


class RetinaCheckpointer(DetectionCheckpointer):
    """Reads the files that ``DetectionCheckpointer`` reads, safely, and loads them completely or not at all.

    - Reading runs no code of the file (:mod:`~retina_plugin.checkpoint.reader`).
    - Everything is checked before the first parameter changes (:mod:`~retina_plugin.checkpoint.load_plan`). What does
      not fit is an error; Detectron2 skips it with a warning.
    - Fine-tuning to other classes keeps the rows of the classes that stay
      (:mod:`~retina_plugin.checkpoint.class_remap`).
    - The file that ``last_checkpoint`` names is complete, whenever the process is killed, and holds no pickled code
      (:mod:`~retina_plugin.checkpoint.weights_only`).
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        class_names: Sequence[str] | None = None,
        allow_pickle: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        """
        Args:
            model: as for ``DetectionCheckpointer``.
            save_dir: folder of the checkpoints; empty to save none.
            strict: for evaluation: the file must have exactly the model's weights, and its classes must be
                ``class_names`` in this order. A resumed run is always loaded strictly.
            class_names: of the data, in the order of its labels, written into checkpoints and compared with those of a
                loaded file; None if unknown.
            allow_pickle: see :func:`read_checkpoint`.
            save_to_disk: whether this process writes; by default the main one.
            checkpointables: objects with ``state_dict()`` and ``load_state_dict()`` that are saved with the model.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.strict = strict
        self.class_names = None if class_names is None else list(class_names)
        self.allow_pickle = allow_pickle
        self._has_saved = False

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict[str, Any]:
        """Load weights, and the state of a run that is resumed.

        Args:
            path: see :func:`read_checkpoint`; empty to load nothing.
            checkpointables: names of the checkpointables to load; by default all that the file has.

        Returns:
            What else the file has.

        Raises:
            CheckpointError: the weights cannot be used. Model and checkpointables are unchanged.
        """
        if not path:
            if self.strict:
                raise CheckpointError("MODEL.WEIGHTS is empty: there are no weights to evaluate. Name a file")
            self.logger.info("MODEL.WEIGHTS is empty: the model starts from its initialization")
            return {}
        self.logger.info("Loading weights %s", path)
        checkpoint = self._load_file(path)
        names = self.checkpointables if checkpointables is None else checkpointables
        names = [name for name in names if name in checkpoint]
        if left_out := foreign_kinds([checkpoint[name] for name in names]):
            raise CheckpointError(
                f"weights {path}: the state of the run has objects that are not read ({list_some(left_out, 5)}). If "
                "you trust the file, MODEL.WEIGHTS_ALLOW_PICKLE True reads them"
            )
        try:
            plan = LoadPlan.make(self.model, checkpoint, self.strict or bool(names), self.class_names)
        except CheckpointError as error:
            raise CheckpointError(f"weights {path}: {error}") from error.__cause__
        del checkpoint["model"]
        missing = self._change(plan, {name: checkpoint.pop(name) for name in names}, path)
        self.logger.info("Weights %s:\n%s", path, plan.summary(self.model, missing))
        for note in plan.notes():
            self.logger.info(note)
        return checkpoint

    def save(self, name: str, *, is_last: bool = True, **kwargs: Any) -> None:
        """Write model, checkpointables, ``kwargs`` and class names to ``save_dir/NAME.pth``.

        Args:
            is_last: let ``last_checkpoint`` name the file, so that the run is resumed from it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if self.class_names is not None:
            kwargs.setdefault("class_names", self.class_names)
        if not self._has_saved:
            remove_unfinished(self.save_dir, ".pth", "last_checkpoint")
            self._has_saved = True
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        data = {key: to_weights_only(value, key) for key, value in data.items()}
        file_name = f"{name}.pth"
        if os.path.basename(file_name) != file_name:
            raise ValueError(f"a checkpoint is named without a folder, got {name}")
        path = os.path.join(self.save_dir, file_name)
        self.logger.info("Saving checkpoint to %s", path)
        atomic_write(path, lambda file: torch.save(data, file), path_manager=self.path_manager)
        if is_last:
            self.tag_last_checkpoint(file_name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Let ``last_checkpoint`` name a file of ``save_dir``."""
        path, name = os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename.encode()
        atomic_write(path, lambda file: file.write(name), path_manager=self.path_manager)

    def has_checkpoint(self) -> bool:
        """Return whether ``save_dir`` has a ``last_checkpoint``, of whatever kind and content.

        Raises:
            CheckpointError: the folder cannot be searched.
        """
        path = os.path.join(self.save_dir, "last_checkpoint")
        if "://" in path:
            return self.path_manager.exists(path)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error})") from error
        return True

    def get_checkpoint_file(self) -> str:
        """Return the path of the file that ``last_checkpoint`` names; empty if there is none.

        Raises:
            CheckpointError: ``last_checkpoint`` cannot be read, or does not name a file of its folder.
        """
        if not self.has_checkpoint():
            return ""
        path = os.path.join(self.save_dir, "last_checkpoint")
        try:
            if "://" not in path:
                require_regular_file(path)
            with self.path_manager.open(path, "rb") as file:
                content = file.read(_LONGEST_NAME + 1)
        except FileError as error:
            raise CheckpointError(f"{error}: it should name the checkpoint to go on from") from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error})") from error
        name = content.decode(errors="replace").strip()
        if len(content) > _LONGEST_NAME or not name.isprintable() or os.path.basename(name) in ("", ".", ".."):
            raise CheckpointError(f"{path} does not name a checkpoint, but has {content[:40]!r}")
        if os.path.basename(name) != name:
            raise CheckpointError(f"{path} names {name}, which is not in its folder")
        return os.path.join(self.save_dir, name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename, allow_pickle=self.allow_pickle, path_manager=self.path_manager)

    def _change(self, plan: LoadPlan, states: dict[str, Any], path: str) -> list[str]:
        """Load model and checkpointables, or none of them; returns the names of weights that the file lacks."""
        # Only their own code can tell whether states fit, and modules may have code of their own for their weights.
        before = {name: copy.deepcopy(self.checkpointables[name].state_dict()) for name in states}
        weights_before = {key: value.clone() for key, value in self.model.state_dict().items()}
        refusal = "the model's own code refuses them ({})"
        try:
            missing = self.model.load_state_dict(plan.weights, strict=False).missing_keys
            refusal = (
                "the model fits, but not the state of the run ({}). Start a new run from them: MODEL.WEIGHTS, without "
                "--resume"
            )
            for name, state in states.items():
                self.checkpointables[name].load_state_dict(state)
        except Exception as error:
            self.model.load_state_dict(weights_before, strict=False)
            for name, state in before.items():
                self.checkpointables[name].load_state_dict(state)
            raise CheckpointError(f"weights {path}: {refusal.format(' '.join(str(error).split()))}") from error
        return missing
