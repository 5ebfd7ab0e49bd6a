"""Values of declarations as plain data, and back.

>>> import torch
>>> encode('scaling_shape', (4, 1)), encode('dtype', torch.float16)
([4, 1], 'torch:float16')
>>> decode('quant_type', 'int', SpecLocation('a.yaml', 1, 1))
<QuantType.INT: 'INT'>

Numbers, booleans, texts and ``None`` are themselves, a tuple is a list, an enum member its name, a class or function
the reference ``package.module:Name``. What remains is a mapping with one key that says what it is: ``value`` (a
reference to the function of a ``@value``), ``link`` (``this.scaling_shape``), ``tensor``, ``device``, ``list``,
``dict``, ``text``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from brevitas.errors import QuantConfigError, SpecError
from brevitas.inject import this
from brevitas.quant.directives import DIRECTIVES
from brevitas.utils.located import LocatedMapping, SpecLocation, did_you_mean
from brevitas.utils.references import is_reference, load_reference, reference
from injector import value as value_decorator

__all__ = ["TAGS", "decode", "encode"]

_Link = type(this)

#: Keys of the mappings that stand for what YAML has no form for, with what they hold.
TAGS = {
    "value": "a reference to the function of a @value",
    "link": "a link such as this.scaling_shape",
    "tensor": "nested lists of numbers, with an optional dtype",
    "device": "a device such as cuda:0",
    "list": "a list (a plain YAML list is a tuple)",
    "dict": "a dict",
    "text": "a text that would be read as a reference",
}


def encode(name: str, obj: Any) -> Any:
    """The plain data of a declared value.

    Args:
        name: name of the declaration, which decides how an enum is written.
        obj: the declared object, not what it resolves to; no nested quantizer.

    Raises:
        QuantConfigError: ``obj`` cannot be data; the message says what it is and what to declare instead.
    """
    if isinstance(obj, Enum):
        return _encode_member(name, obj)
    if obj is None or isinstance(obj, bool):
        return obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj)
    if isinstance(obj, str):
        directive = DIRECTIVES.get(name)
        if directive is not None and directive.enum is not None and directive.check(obj):
            return obj.upper()
        return {"text": str(obj)} if is_reference(obj) else str(obj)
    if isinstance(obj, tuple):
        return [encode(name, item) for item in obj]
    if isinstance(obj, list):
        return {"list": [encode(name, item) for item in obj]}
    if isinstance(obj, dict):
        return {"dict": {_key(key): encode(name, item) for key, item in obj.items()}}
    if isinstance(obj, torch.dtype):
        return f"torch:{str(obj).removeprefix('torch.')}"
    if isinstance(obj, torch.device):
        return {"device": str(obj)}
    return _encode_object(obj)


def _encode_member(name: str, member: Enum) -> str:
    directive = DIRECTIVES.get(name)
    if directive is not None and directive.enum is type(member):
        return member.name
    found = reference(type(member))
    if found is None:
        raise QuantConfigError(f"the enum {type(member).__qualname__} {_NOT_IMPORTABLE}")
    return f"{found}.{member.name}"


_NOT_IMPORTABLE = "cannot be imported by its name; define it at the top of a module of your own"


def _encode_object(obj: Any) -> Any:
    if isinstance(obj, value_decorator):
        found = reference(obj.__function__) or _decorated(obj)
        if found is None:
            where = obj.__function__.__code__
            raise QuantConfigError(
                f"the @value function '{obj.__function__.__qualname__}' ({where.co_filename}:{where.co_firstlineno}) "
                f"{_NOT_IMPORTABLE}, or in the body of a class there"
            )
        return {"value": found}
    if isinstance(obj, _Link):
        return {"link": repr(obj)}
    if isinstance(obj, nn.Parameter) or (isinstance(obj, Tensor) and obj.requires_grad):
        raise QuantConfigError("a Parameter is state, not a declaration; declare a plain tensor or a number")
    if isinstance(obj, Tensor):
        dtype = str(obj.dtype).removeprefix("torch.")
        # Through float64, which holds every narrower number exactly.
        numbers = obj.detach().cpu().double() if obj.is_floating_point() else obj.detach().cpu()
        return {"tensor": numbers.tolist(), "dtype": dtype}
    if isinstance(obj, nn.Module):
        sort = "a module instance with state" if obj.state_dict() else "a module instance"
        raise QuantConfigError(
            f"{sort}, {type(obj).__name__}, cannot be written as data; declare its class, and what its constructor "
            "takes as further names"
        )
    if inspect.isclass(obj) or callable(obj):
        found = reference(obj)
        if found is None:
            sort = "class" if inspect.isclass(obj) else "function"
            raise QuantConfigError(f"the {sort} {getattr(obj, '__qualname__', obj)!r} {_NOT_IMPORTABLE}")
        return found
    raise QuantConfigError(f"a {type(obj).__name__} cannot be written as data: {obj!r}")


def _decorated(declared: Any) -> str | None:
    """The reference of a function whose name stands for the ``@value`` of it: in a class body or a module."""
    function = declared.__function__
    text = f"{function.__module__}:{function.__qualname__}"
    if function.__module__ == "__main__" or not is_reference(text):
        return None
    try:
        found = load_reference(text)
    except QuantConfigError:
        return None
    same = found is declared or (isinstance(found, value_decorator) and found.__function__ is function)
    return text if same else None


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise QuantConfigError(f"the key {key!r} of a dict is no text")
    return key


def decode(name: str, data: Any, place: SpecLocation) -> Any:
    """The object to declare under ``name`` for what :func:`encode` wrote; ``place`` is where it was written.

    Raises:
        SpecError: the data has no meaning, or refers to what cannot be imported.
    """
    if isinstance(data, str):
        directive = DIRECTIVES.get(name)
        if directive is not None and directive.enum is not None:
            return directive.enum.__members__.get(data.upper(), data)
        if not is_reference(data):
            return data
        try:
            return load_reference(data)
        except QuantConfigError as error:
            raise SpecError(f"{place}: '{name}': {error}") from error
    if data is None or isinstance(data, bool | int | float):
        return data
    if isinstance(data, list):
        return tuple(decode(name, item, place) for item in data)
    if isinstance(data, Mapping):
        tags = [key for key in data if key in TAGS]
        extra = {"dtype"} if tags == ["tensor"] else set()
        if len(tags) != 1 or set(data) - set(tags) - extra:
            wrong = next((key for key in data if key not in TAGS), next(iter(data), ""))
            where = data.place(wrong) if isinstance(data, LocatedMapping) else place
            raise SpecError(
                f"{where}: '{name}' has the key '{wrong}': a mapping here is a quantizer with 'base', or has one of "
                f"the keys {', '.join(TAGS)}{did_you_mean(wrong, TAGS) if wrong not in TAGS else ''}"
            )
        where = data.place(tags[0]) if isinstance(data, LocatedMapping) else place
        return _DECODE[tags[0]](name, data, where)
    raise SpecError(f"{place}: '{name}' is {data!r}, a {type(data).__name__}, which no directive can be")


def _decode_value(name: str, data: Mapping[str, Any], place: SpecLocation) -> Any:
    found = _imported(name, data["value"], place)
    if isinstance(found, value_decorator):
        return found
    if not inspect.isfunction(found):
        raise SpecError(f"{place}: '{name}': '{data['value']}' is no function, and a @value is one")
    return value_decorator(found)


def _imported(name: str, text: Any, place: SpecLocation) -> Any:
    try:
        return load_reference(text)
    except QuantConfigError as error:
        raise SpecError(f"{place}: '{name}': {error}") from error


def _decode_link(name: str, data: Mapping[str, Any], place: SpecLocation) -> Any:
    try:
        return _link(ast.parse(str(data["link"]), mode="eval").body)
    except (SyntaxError, ValueError):
        raise SpecError(
            f"{place}: '{name}': {data['link']!r} is no link; expected this.name, this.name[0] or (this << 1).name"
        ) from None


def _link(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id == "this":
        return this
    if isinstance(node, ast.Attribute):
        return getattr(_link(node.value), node.attr)
    if isinstance(node, ast.Subscript):
        return _link(node.value)[ast.literal_eval(node.slice)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        return _link(node.left) << ast.literal_eval(node.right)
    raise ValueError(ast.dump(node))


def _decode_tensor(name: str, data: Mapping[str, Any], place: SpecLocation) -> Tensor:
    dtype = getattr(torch, str(data.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype):
        near = did_you_mean(data["dtype"], [n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype)])
        raise SpecError(f"{place}: '{name}': {data['dtype']!r} is no dtype of torch{near}")
    try:
        return torch.tensor(data["tensor"], dtype=dtype)
    except (ValueError, TypeError) as error:
        raise SpecError(f"{place}: '{name}': these are not nested lists of numbers of one shape ({error})") from error


def _decode_device(name: str, data: Mapping[str, Any], place: SpecLocation) -> torch.device:
    try:
        return torch.device(data["device"])
    except (RuntimeError, TypeError) as error:
        raise SpecError(f"{place}: '{name}': {data['device']!r} is no device: {str(error).splitlines()[0]}") from error


def _decode_list(name: str, data: Mapping[str, Any], place: SpecLocation) -> list[Any]:
    if not isinstance(data["list"], list):
        raise SpecError(f"{place}: '{name}': expected a list under 'list', found {data['list']!r}")
    return [decode(name, item, place) for item in data["list"]]


def _decode_dict(name: str, data: Mapping[str, Any], place: SpecLocation) -> dict[str, Any]:
    if not isinstance(data["dict"], Mapping):
        raise SpecError(f"{place}: '{name}': expected a mapping under 'dict', found {data['dict']!r}")
    return {key: decode(name, item, place) for key, item in data["dict"].items()}


def _decode_text(name: str, data: Mapping[str, Any], place: SpecLocation) -> str:
    if not isinstance(data["text"], str):
        raise SpecError(f"{place}: '{name}': expected a text under 'text', found {data['text']!r}")
    return data["text"]


_DECODE: dict[str, Callable[[str, Mapping[str, Any], SpecLocation], Any]] = {
    "value": _decode_value,
    "link": _decode_link,
    "tensor": _decode_tensor,
    "device": _decode_device,
    "list": _decode_list,
    "dict": _decode_dict,
    "text": _decode_text,
}
