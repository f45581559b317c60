"""The pickle inside a PyTorch file, interpreted without the power to run anything.

Python's unpickler calls what a file names; an allow list in front of it still leaves its other
instructions, of which some allocate what the file asks for. So there is no unpickler here: the
instructions that torch.save writes for a state dict, about thirty, are interpreted one by one into
dicts, tuples and descriptions. A name is only compared with a table, never looked up or called.

It does not know where values lie (`torch_file.py`), and it keeps nothing of what PyTorch attaches
besides: metadata, hooks, the device that a storage was on.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class PickleRefusedError(Exception):
    """The pickle is malformed, or asks for something that a state dict does not need."""


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A run of values of one dtype in the zip member `data/<key>`; several tensors may share it."""

    dtype: str
    key: str
    values: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as the pickle describes it; offset and strides count values. Nothing is checked but types."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the pickle mentioned and the table allows."""

    name: str


STORAGE_DTYPES: Mapping[str, str] = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}

_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED_DICT = "collections.OrderedDict"
_ALLOWED = frozenset({_TENSOR, _PARAMETER, _ORDERED_DICT, *STORAGE_DTYPES})


def interpret(pickled: bytes) -> object:
    """The value that the pickle describes: dicts, lists, tuples, numbers, strings, PickledTensor.

    Raises PickleRefusedError. Time and memory are linear in the length of the pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return machine.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleRefusedError(
                    f"its pickle has the instruction {opcode.name}, which no state dict needs"
                )
            step(machine, argument)
    # What a stack that runs dry, a wrong operand or a cut argument raise, here and in pickletools.
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise PickleRefusedError(f"its pickle is damaged ({type(error).__name__})") from error
    raise PickleRefusedError("its pickle is damaged (no end)")


class _Machine:
    """A pickle's stack, with the outer stacks that marks have put aside, and its memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def pop_mark(self) -> list[Any]:
        """Everything since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items


def _push(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


def _mark(machine: _Machine, _: object) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _tuple(length: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: object) -> None:
        items = [machine.stack.pop() for _ in range(length)]
        machine.stack.append(tuple(reversed(items)))

    return step


def _global(machine: _Machine, argument: str) -> None:
    module, name = argument.split(" ", 1)
    _name(machine, module, name)


def _stack_global(machine: _Machine, _: object) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("a name must be a string")
    _name(machine, module, name)


def _name(machine: _Machine, module: str, name: str) -> None:
    full = f"{module}.{name}"
    if full not in _ALLOWED:
        raise PickleRefusedError(
            f"its pickle asks for {full[:200]!r}, which Trivec refuses: only tensors, their storages and "
            "OrderedDict are read. Save only the model's state_dict(), or do not use this file"
        )
    machine.stack.append(_Global(full))


def _persistent(machine: _Machine, _: object) -> None:
    """A storage: ('storage', its class, key, device, number of values). The device does not matter."""
    kind, storage_class, key, _device, values = machine.stack.pop()
    if kind != "storage" or not isinstance(storage_class, _Global) or not isinstance(key, str):
        raise TypeError("not a storage")
    machine.stack.append(PickledStorage(STORAGE_DTYPES[storage_class.name], key, _size(values)))


def _reduce(machine: _Machine, _: object) -> None:
    """Where an unpickler would call something; here, three names have a meaning and nothing is called."""
    arguments, called = machine.stack.pop(), machine.stack.pop()
    if not isinstance(called, _Global) or not isinstance(arguments, tuple):
        raise TypeError("not a call")
    if called.name == _TENSOR:
        machine.stack.append(_tensor(*arguments[:4]))
    elif called.name == _PARAMETER and isinstance(arguments[0], PickledTensor):
        machine.stack.append(arguments[0])
    elif called.name == _ORDERED_DICT and not arguments:
        machine.stack.append({})
    else:
        raise TypeError("a call that torch.save does not write")


def _tensor(storage: object, offset: object, shape: object, strides: object) -> PickledTensor:
    if not (isinstance(storage, PickledStorage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise TypeError("not a tensor")
    if len(shape) != len(strides):
        raise ValueError("each dimension needs a stride")
    return PickledTensor(storage, _size(offset), tuple(map(_size, shape)), tuple(map(_size, strides)))


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("not a size")
    return value


def _build(machine: _Machine, _: object) -> None:
    """Attributes for the object below: `Module.state_dict()` has `_metadata`. They are dropped."""
    machine.stack.pop()
    if not isinstance(machine.stack[-1], dict):
        raise TypeError("attributes are set on a dict only")


def _set(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(pairs) % 2:
        raise TypeError("not a dict")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        # Not any hashable: the hash of a tuple of tuples of the same tuple takes exponential time.
        if type(key) not in (str, int):
            raise TypeError("a dict's keys are strings or integers")
        if key in target:
            raise ValueError("a key is there twice")
        target[key] = value


def _set_item(machine: _Machine, _: object) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set(machine, [key, value])


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise TypeError("not a list")
    target.extend(items)


def _memoize(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _mark,
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_mark())),
    "APPEND": lambda machine, _: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _set(machine, machine.pop_mark()),
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": _memoize,
    "BINGET": lambda machine, index: _push(machine, machine.memo[index]),
    "LONG_BINGET": lambda machine, index: _push(machine, machine.memo[index]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
    "BUILD": _build,
}
