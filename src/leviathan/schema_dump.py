"""Owns the description of Axolotl's own schema: ``python -m leviathan.schema_dump FILE``.

Runs in a process of its own because it imports axolotl, and with it torch. ``schema``
starts it and reads the file. pydantic's own JSON schema cannot be used: some of
Axolotl's enums hold ``torch.dtype`` members, which it refuses to serialise.
"""

import enum
import importlib
import inspect
import json
import pkgutil
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pydantic

_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}


def shape(annotation: Any) -> dict[str, Any]:
    """The JSON shape (see ``schema``) of one annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shape(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _union([shape(argument) for argument in arguments])
    if origin is typing.Literal:
        return {"kinds": sorted({_PLAIN.get(type(a), "any") for a in arguments} - {"str"}),
                "enum": list(arguments)}  # fmt: skip
    if origin in (list, tuple, set):
        items = shape(arguments[0]) if arguments else {"kinds": ["any"]}
        return {"kinds": ["list"], "items": items}
    if origin is dict or annotation is dict:
        return {"kinds": ["dict"]}
    if annotation is list:
        return {"kinds": ["list"]}
    if annotation in _PLAIN:
        return {"kinds": [_PLAIN[annotation]]}
    if inspect.isclass(annotation) and issubclass(annotation, pydantic.BaseModel):
        return {"kinds": [], "fields": model_fields(annotation)}
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return {"kinds": [], "enum": _enum_values(annotation)}
    return {"kinds": ["any"]}


def _enum_values(annotation: type[enum.Enum]) -> list[Any]:
    names: list[Any] = [member.name for member in annotation]
    return names + [m.value for m in annotation if isinstance(m.value, str | int)]


def _union(options: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {"kinds": []}
    for option in options:
        merged["kinds"] += [kind for kind in option["kinds"] if kind not in merged["kinds"]]
        merged.setdefault("enum", []).extend(option.get("enum", []))
        if "fields" in option:
            fields = merged.setdefault("fields", {})
            for name, described in option["fields"].items():
                fields[name] = _union([fields[name], described]) if name in fields else described
        if "items" in option:
            known = [merged["items"]] if "items" in merged else []
            merged["items"] = _union([*known, option["items"]])
    if not merged["enum"]:
        del merged["enum"]
    return merged


def model_fields(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    """Every name a pydantic model takes, aliases included, with its shape."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        described = shape(info.annotation)
        # A validator that runs first may accept more than the annotation says.
        if _has_before_validator(model, name):
            described = {**described, "kinds": ["any"]}
        choices = getattr(info.validation_alias, "choices", [info.validation_alias])
        for known in [name, info.alias, *choices]:
            if isinstance(known, str):
                fields[known] = described
    return fields


def _has_before_validator(model: type[pydantic.BaseModel], name: str) -> bool:
    validators = model.__pydantic_decorators__.field_validators.values()
    return any(name in v.info.fields and v.info.mode == "before" for v in validators)


def integration_fields() -> dict[str, dict[str, Any]]:
    """For each Axolotl integration with config keys of its own: those keys."""
    import axolotl.integrations

    found: dict[str, dict[str, Any]] = {}
    for package in pkgutil.iter_modules(axolotl.integrations.__path__):
        try:
            module = importlib.import_module(f"axolotl.integrations.{package.name}.args")
        except ImportError:
            continue  # no keys of its own, or it needs a package that is not here
        fields: dict[str, Any] = {}
        for _, model in inspect.getmembers(module, inspect.isclass):
            if issubclass(model, pydantic.BaseModel) and model.__module__ == module.__name__:
                fields.update(model_fields(model))
        found[package.name] = fields
    return found


def _stricter_fields() -> dict[str, Any]:
    """Keys Axolotl types as text and fails on only after the model is loaded."""
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    optimizers = [*_enum_values(CustomSupportedOptimizers), *(o.value for o in OptimizerNames)]
    # Axolotl's own schedulers, beside transformers': utils/schemas/training.py.
    schedulers = [*(s.value for s in SchedulerType), "one_cycle", "rex", "log_sweep"]
    return {
        "learning_rate": {"kinds": ["float"]},
        "optimizer": {"kinds": ["null"], "enum": optimizers},
        "lr_scheduler": {"kinds": ["null"], "enum": schedulers},
    }


def main() -> None:
    """Write the installed Axolotl's keys to the file named on the command line."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    document = {
        "fields": {**model_fields(AxolotlInputConfig), **_stricter_fields()},
        "integrations": integration_fields(),
    }
    Path(sys.argv[1]).write_text(json.dumps(document, default=str))


if __name__ == "__main__":
    main()
