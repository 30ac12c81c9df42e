"""Values from outside (YAML, JSON, the command line) checked by pydantic against annotations, with errors of one line.

Whole numbers and text such as ``1e-3``, which YAML does not read as a number, pass as floats, and lists as tuples. Nothing
else is converted: a boolean is not a number, ``"3"`` and ``2.0`` are not integers.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Strict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tgeokd.utils.deprecation import renames_of
from tgeokd.utils.errors import InputError, check_names, one_line, unknown_name

C = TypeVar("C", bound="Config")
TYPE_NAMES = {"string": "str", "model": "mapping", "dataclass": "mapping"}


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "a boolean is not a number")
    return value


StrictInt = Annotated[int, Strict()]
StrictBool = Annotated[bool, Strict()]
StrictFloat = Annotated[float, BeforeValidator(_refuse_bool)]
STRICT: dict[Any, Any] = {int: StrictInt, bool: StrictBool, float: StrictFloat}
CONTAINERS = (tuple, list, dict, set, frozenset, Sequence, Mapping)


class Config(BaseModel):
    """Base of the configuration models: frozen; unknown keys are refused with the nearest name; errors are InputErrors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _input_error(error) from error

    # pydantic builds nested models without calling an __init__ that is marked like this, so that only the outermost model
    # translates errors, which then have the whole path
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        return _refuse_unknown(values, cls.model_fields)


def replace(config: C, **changes: Any) -> C:
    """A copy of a configuration with some fields changed, validated like a new one."""
    return type(config)(**{**dict(config), **changes})


def validate_config(kind: type[C], content: Any, what: str = "the config") -> C:
    """Build a configuration model from plain data, for example from YAML; ``what`` names it in messages."""
    if not isinstance(content, Mapping):
        raise InputError(f"{what} must be a mapping of settings, not {content!r:.200}")
    return kind(**{str(key): value for key, value in content.items()})


def validate_value(annotation: Any, value: Any, what: str) -> Any:
    """The value as an annotated type; ``what`` names it in messages. Mappings become dataclasses where annotated so."""
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        raise _input_error(error, what) from error


def call_validated(what: str, function: Callable[..., Any], options: Mapping[str, Any], **fixed: Any) -> Any:
    """Call a function or constructor with options from outside, validated against its signature.

    Args:
        what: what the function makes, for messages.
        function: takes keyword arguments with annotations.
        options: from outside; unknown ones are refused with the nearest name, earlier names are accepted.
        **fixed: further arguments, not open to the outside.
    """
    inner = function.func if isinstance(function, partial) else function
    target = inner.__init__ if isinstance(inner, type) else inner  # type: ignore[misc]
    parameters = () if target is object.__init__ else inspect.signature(function).parameters
    known = [name for name in parameters if name not in fixed]
    renamed = renames_of(inner)
    current = [renamed.get(name, name) for name in options]
    check_names(f"option of {what}", current, known)
    twice = next((name for name in current if current.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} of {what} is given twice, once under its earlier name")
    hints = typing.get_type_hints(target, include_extras=True)
    pairs = zip(options.items(), current, strict=True)
    values = {name: validate_value(hints.get(new, Any), value, f"{name} of {what}") for (name, value), new in pairs}
    return function(**fixed, **values)


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    own = dataclasses.is_dataclass(annotation)  # its model has these settings already
    return TypeAdapter(_strict(annotation), config=None if own else ConfigDict(arbitrary_types_allowed=True))


def _strict(annotation: Any) -> Any:
    """The annotation with types that do not convert, and dataclasses that refuse unknown keys."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Annotated[_model_of(annotation), WrapValidator(partial(_build, annotation))]
    if origin in (Union, types.UnionType):
        union: Any = Union.__getitem__(tuple(map(_strict, arguments)))
        several = sum(each is not type(None) for each in arguments) > 1
        return Annotated[union, WrapValidator(partial(_of_union, annotation))] if several else union
    if origin in CONTAINERS and arguments:
        return origin[tuple(_strict(each) for each in arguments)]
    return STRICT.get(annotation, annotation) if isinstance(annotation, type) else annotation


def _model_of(kind: Any) -> type[BaseModel]:
    """A pydantic model with the fields of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        fields[each.name] = (_strict(hints[each.name]), ... if required else None)
    unknown = BeforeValidator(partial(_refuse_unknown, known=list(fields)))
    model = create_model(kind.__name__, __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    return Annotated[model, unknown]  # type: ignore[return-value]


def _build(kind: Any, value: Any, handler: Callable[[Any], BaseModel]) -> Any:
    """An instance of a dataclass, from one or from a mapping of its fields."""
    if isinstance(value, kind):
        return value
    found = handler(value)
    return kind(**{name: getattr(found, name) for name in found.model_fields_set})


def _of_union(annotation: Any, value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        names = str(annotation).replace("typing.", "")
        raise PydanticCustomError("union_type", "no type of a union", {"expected": names}) from error


def _refuse_unknown(values: Any, known: Iterable[str]) -> Any:
    if isinstance(values, Mapping):
        for name in values:
            if name not in known:
                raise PydanticCustomError("unknown_key", "unknown key", {"name": str(name), "known": list(known)})
    return values


def _input_error(error: ValidationError, what: str = "") -> InputError:
    """The first problem in one line; the only place that reads pydantic's errors."""
    first = error.errors(include_url=False)[0]
    kind, given, context = first["type"], first["input"], first.get("ctx", {})
    names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    path, parent = ("".join([what, *names[:end]]).removeprefix(".") for end in (len(names), len(names) - 1))
    if kind == "value_error":
        return context["error"] if isinstance(context["error"], InputError) else InputError(one_line(context["error"]))
    if kind == "unknown_key":
        prefix = f"{path}." if path else ""
        return unknown_name("setting", prefix + context["name"], [prefix + name for name in context["known"]])
    if kind == "missing":
        last = first["loc"][-1]
        missing = f"value {last + 1}" if isinstance(last, int) else repr(last)
        return InputError(f"{parent or 'the config'} lacks {missing}")
    expected = _expected(kind, context)
    return InputError(f"{path} must be {expected or first['msg']}, not {given!r:.200}")


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    """What a value should have been, by the type of pydantic's error."""
    for sign, name in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt")):
        if name in context:
            return f"{sign} {context[name]}"
    if kind == "literal_error":
        return "one of " + str(context["expected"]).replace(" or ", ", ").replace("'", "")
    if kind == "too_long":
        return f"of at most {context['max_length']} values"
    name, _, rest = kind.partition("_")
    if rest in ("type", "parsing", "from_float"):
        return f"of type {context.get('expected') or TYPE_NAMES.get(name, name)}"
    return ""
