"""Checks that the names of image files lead to files in the folder of images."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath

from retina_plugin.core.text import list_some
from retina_plugin.data.checks import image_files
from retina_plugin.data.checks.context import Context, DataSet, check
from retina_plugin.data.checks.file_names import OtherName, find_other_names
from retina_plugin.data.checks.findings import Entry, Finding, error_kind, warning_kind
from retina_plugin.data.checks.image_files import ImageFile, ImageFiles
from retina_plugin.data.checks.repair import Editor, drop_image, repairs

NOT_READ = "Training takes another image instead, and stops after DATALOADER.MAX_UNREADABLE of them; evaluation stops."
NO_FOLDER = error_kind("image-folder-missing: Training stops at the first batch. Correct the folder of images.")
MISSING = error_kind(f"image-missing: {NOT_READ} Put the file there, or remove the entry. --fix removes it.")
repairs(MISSING)(drop_image)
OTHER_NAME = error_kind(f"""image-name-differs: {NOT_READ} The file is there under another name: another folder, case,
    accents, slashes, URL encoding. Correct the name. --fix does.""")
PATH = warning_kind(
    """image-path: The name leads out of the folder of images: a copy of the data set elsewhere reads
    other files or none. Use names relative to the folder. --fix does for files in the folder.""",
    is_advice=True,
)


@repairs(OTHER_NAME, PATH)
def _correct_name(editor: Editor, finding: Finding) -> str | None:
    name = finding.entry["file_name"]
    if name not in editor.data.right_names:
        return None
    finding.entry["file_name"] = editor.data.right_names[name]
    return "name corrected"


@check
def check_names(context: Context) -> None:
    """Find names of no file, with the file that they probably mean, and names that lead out of the folder."""
    data, found, images = context.data, context.found, context.entries.images
    data.right_names.clear()
    if context.files is None:
        for image in images:
            _check_path(image, context)
        return
    if not data.has_folder():
        found.add(NO_FOLDER, f"no folder {data.image_root}")
        return
    files = context.files.look(data.path(image) for image in images)
    there: list[Entry] = []
    missing: list[Entry] = []
    for image, file in zip(images, files):
        (missing if file.problem == image_files.MISSING else there).append(image)
    for image in there:
        _check_path(image, context)
    if not missing:
        return
    for image, other in _other_names(missing, [data.path(image) for image in there], data, context.files):
        near = list_some(other.near, 2, " or ") if other.name is None else other.name
        if other.name is not None:
            data.right_names[image["file_name"]] = other.name
        kind = MISSING if other.name is None else OTHER_NAME
        found.add(kind, f"no file {data.path(image)}" + (f", but {near}" if near else ""), image)


def _check_path(image: Entry, context: Context) -> None:
    name, root = image["file_name"], context.data.image_root
    if root is None:
        return
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        detail = "an absolute path"
    elif os.pardir in PureWindowsPath(name).parts:  # of both slashes
        detail = "leaves the folder by .."
    else:
        return
    folder, base = os.path.split(context.data.path(image))
    inside = os.path.relpath(os.path.join(os.path.realpath(folder), base), os.path.realpath(root))
    if inside.split(os.sep)[0] != os.pardir and context.files is not None:
        context.data.right_names[name] = inside
    context.found.add(PATH, detail, image)


def _other_names(
    images: list[Entry], taken: list[str], data: DataSet, files: ImageFiles
) -> Iterator[tuple[Entry, OtherName]]:
    """The images with what their names mean; a file of another folder must have the size in the JSON."""
    folders: dict[str, dict[str, list[Entry]]] = {}
    for image in images:
        name, folder = image["file_name"], data.image_root
        if folder is None:
            folder, name = os.path.split(name.replace("\\", "/"))
        folders.setdefault(folder, {}).setdefault(name, []).append(image)
    for folder, by_name in folders.items():
        others = find_other_names(folder, by_name, taken, deep=data.image_root is not None)
        paths = {name: os.path.join(folder, other.name) for name, other in others.items() if other.name is not None}
        looked = dict(zip(paths, files.look(paths.values())))
        for name, other in others.items():
            for image in by_name[name]:
                if name in looked and not other.is_same_path and not _has_size(looked[name], image):
                    yield image, OtherName(None, near=(f"{other.name}, of another size",))
                else:
                    yield image, other


def _has_size(file: ImageFile, image: Entry) -> bool:
    return file.problem is not None or (image["width"], image["height"]) in (file.size, file.turned_size)
