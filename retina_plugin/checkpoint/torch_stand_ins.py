"""Reads pickled tensors.

``torch`` rebuilds a tensor on whatever memory its pickle describes: it lengthens a storage that is too short, and a
legacy constructor returns memory that is not initialized. Here, a tensor must lie within the bytes that the file has.
Tensors that are not dense arrays of numbers are read as placeholders.
"""

import math
from typing import Any

import torch

from retina_plugin.checkpoint.foreign import Foreign
from retina_plugin.checkpoint.stand_ins import Budget, Function, UnsafePickle, are_sizes

_STORAGES = {
    **{"BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8},
    **{"CharStorage": torch.int8, "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64},
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"IntStorage": torch.int32, "LongStorage": torch.int64, "ShortStorage": torch.int16},
    **{"QInt32Storage": torch.qint32, "QInt8Storage": torch.qint8, "QUInt2x4Storage": torch.quint2x4},
    **{"QUInt4x2Storage": torch.quint4x2, "QUInt8Storage": torch.quint8, "UntypedStorage": torch.uint8},
}
_DENSE_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_OTHER_TENSORS = {
    "torch._utils._rebuild_qtensor": "quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "sparse tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta tensor (without values)",
    "torch._utils._rebuild_nested_tensor": "nested tensor",
    "torch.nested._internal.nested_tensor._rebuild_njt": "nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensor of another kind of device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "tensor of another kind of device",
    "torch.serialization._get_layout": "layout",
}
_QUANTIZERS = (
    *("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"),
    "per_channel_affine_float_qparams",
)


class StorageType(Function):
    """Stands for a class of storages.

    Attributes:
        dtype: of their elements.
    """

    __slots__ = ("dtype",)
    dtype: torch.dtype

    def __init__(self, name: str, dtype: torch.dtype):
        super().__init__(name, _not_made)
        object.__setattr__(self, "dtype", dtype)


class Storage:
    """Stands for a storage.

    Attributes:
        data: its bytes (uint8).
        dtype: of its elements.
    """

    __slots__ = ("data", "dtype")

    def __init__(self, data: torch.Tensor, dtype: torch.dtype):
        self.data, self.dtype = data, dtype


def torch_global(module: str, name: str) -> Any:
    """Return what stands for a name of ``torch``: a storage, a dtype or a function of its pickles; None for others."""
    full_name = f"{module}.{name}"
    if full_name in TORCH:
        return TORCH[full_name]
    if module in ("torch", "torch.cuda", "torch.storage"):
        if name in _STORAGES:
            return StorageType(full_name, _STORAGES[name])
        if name in _QUANTIZERS:
            return Function(full_name, _other(full_name))
        dtype = vars(torch).get(name)  # getattr() may import
        return dtype if isinstance(dtype, torch.dtype) else None
    return None


def _not_made(budget: Budget, *args: Any) -> None:
    raise UnsafePickle("it makes a storage that is not one of the file's")


def _strided(budget: Budget, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> Any:
    """Return a tensor on a storage's bytes, which it must lie within."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise UnsafePickle("it has a tensor without a storage or a type")
    if not are_sizes((offset,)) or not are_sizes(size) or not are_sizes(stride) or len(size) != len(stride):
        raise UnsafePickle("it has a tensor whose shape is no tuple of numbers")
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count, start = math.prod(size), storage.data.storage_offset()
    if count and (end * dtype.itemsize > len(storage.data) or start % dtype.itemsize):
        raise UnsafePickle("it has a tensor that is larger than its data")
    if str(dtype).startswith("torch.q"):
        return Foreign("quantized tensor")
    budget.spend_data(count * dtype.itemsize)
    if not count:
        return torch.empty(size, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(
        storage.data.untyped_storage(), start // dtype.itemsize + offset, size, stride
    )


def _tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    return _strided(budget, storage, getattr(storage, "dtype", None), offset, size, stride)


def _tensor_v2(
    budget: Budget,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Any:
    dtype = getattr(storage, "dtype", None)
    return _tensor_v3(budget, storage, offset, size, stride, requires_grad, hooks, dtype, metadata)


def _tensor_v3(
    budget: Budget,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Any:
    tensor = _strided(budget, storage, dtype, offset, size, stride)
    return Foreign("conjugated tensor") if metadata else tensor


def _parameter(budget: Budget, data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    if not isinstance(data, (torch.Tensor, Foreign)):
        raise UnsafePickle("it has a parameter without a tensor")
    return data


def _of_class(budget: Budget, function: Any, tensor_class: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, or of a class of its own."""
    name = getattr(tensor_class, "name", "a class of its own")
    if name not in _DENSE_CLASSES:
        return Foreign(f"tensor of {name}")
    if not isinstance(function, Function) or type(args) is not tuple:
        raise UnsafePickle("it makes a tensor in another way than torch")
    return _parameter(budget, function(budget, *args), None, None)


def _size(budget: Budget, sizes: Any = ()) -> torch.Size:
    if not are_sizes(sizes):
        raise UnsafePickle("it has a size that is no tuple of numbers")
    return torch.Size(sizes)


def _device(budget: Budget, kind: Any, *index: Any) -> torch.device:
    if not isinstance(kind, str) or any(type(i) is not int for i in index):
        raise UnsafePickle("it has a device without a name")
    return torch.device(kind, *index)


def _other(kind: str) -> Any:
    return lambda budget, *args: Foreign(kind)


#: Name with module -> what stands for it.
TORCH: dict[str, Function] = {
    name: Function(name, call)
    for name, call in [
        ("torch._utils._rebuild_tensor", _tensor),
        ("torch._utils._rebuild_tensor_v2", _tensor_v2),
        ("torch._utils._rebuild_tensor_v3", _tensor_v3),
        ("torch._utils._rebuild_parameter", _parameter),
        ("torch._utils._rebuild_parameter_with_state", _parameter),
        ("torch._tensor._rebuild_from_type_v2", _of_class),
        ("torch.Size", _size),
        ("torch.device", _device),
        *((name, _other(kind)) for name, kind in _OTHER_TENSORS.items()),
    ]
}
