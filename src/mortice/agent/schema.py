"""Checks arguments and results against JSON Schemas that a stranger may have written: bounded in size and in work, and
nothing is ever fetched.

Patterns are not evaluated: a regular expression of a stranger can run for ever, and the server checks its own.
"""

from collections.abc import Callable, Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_NODES = 2_000
MAX_DEPTH = 32
MAX_STEPS = 20_000
MAX_VALUE_NODES = 200_000


class Unchecked(Exception):
    """The schema is too large, too deep, too costly or refers to elsewhere."""


def check_schema(schema: Any) -> None:
    """Is it one that we are willing to evaluate? Raises Unchecked."""
    nodes = 0
    stack: list[tuple[Any, int]] = [(schema, 0)]
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise Unchecked(f"the schema has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise Unchecked(f"the schema is nested deeper than {MAX_DEPTH}")
        if isinstance(node, dict):
            reference = node.get("$ref", "#")
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise Unchecked("the schema refers to another document")
            stack.extend((value, depth + 1) for value in node.values())
        elif isinstance(node, list):
            stack.extend((value, depth + 1) for value in node)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise Unchecked(f"not a JSON Schema: {error.message[:200]}") from error


def mistakes(value: Any, schema: dict[str, Any], *, most: int = 5) -> list[str]:
    """What is wrong with the value, one line each; empty if nothing is. Raises Unchecked."""
    check_schema(schema)
    _check_size(value)
    steps = 0

    def counted(keyword: Callable[..., Iterator[ValidationError] | None]) -> Callable[..., Any]:
        def evaluate(validator: Any, part: Any, instance: Any, whole: Any) -> Iterator[ValidationError]:
            nonlocal steps
            steps += 1
            if steps > MAX_STEPS:
                raise Unchecked(f"the schema takes more than {MAX_STEPS} steps")
            yield from keyword(validator, part, instance, whole) or ()

        return evaluate

    rules = {name: counted(rule) for name, rule in Draft202012Validator.VALIDATORS.items()}
    rules["pattern"] = rules["patternProperties"] = counted(lambda *_: None)
    additional = Draft202012Validator.VALIDATORS["additionalProperties"]
    rules["additionalProperties"] = counted(
        lambda v, part, instance, whole: (
            None if "patternProperties" in whole else additional(v, part, instance, whole)
        )
    )
    validator = extend(Draft202012Validator, rules)(schema, registry=Registry())
    found = []
    try:
        for error in validator.iter_errors(value):
            place = "/".join(map(str, error.absolute_path))
            found.append(f"{place}: {error.message[:300]}" if place else error.message[:300])
            if len(found) == most:
                break
    except Unresolvable as error:
        raise Unchecked(f"the schema refers to what is not there: {error.ref}") from error
    except RecursionError as error:
        raise Unchecked("the schema refers to itself without end") from error
    return found


def _check_size(value: Any) -> None:
    nodes = 0
    stack = [value]
    while stack:
        node = stack.pop()
        nodes += 1
        if nodes > MAX_VALUE_NODES:
            raise Unchecked(f"the value has more than {MAX_VALUE_NODES} parts")
        if isinstance(node, dict):
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
