from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from claude_daemon.offline.pattern import example
from claude_daemon.offline.scalars import SchemaError
from claude_daemon.offline.schema import instance

NAMES = st.sampled_from(["a", "b", "c", "d"])
JSON_SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text("xyz", max_size=3)


@st.composite
def _numbers(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    low = draw(st.integers(-50, 50))
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(st.integers(20, 60))
    if draw(st.booleans()):
        schema["multipleOf"] = draw(st.integers(1, 9))
    return schema


@st.composite
def _strings(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if draw(st.booleans()):
        schema["minLength"] = draw(st.integers(0, 9))
    if draw(st.booleans()):
        schema["maxLength"] = draw(st.integers(10, 20))
    return schema


@st.composite
def _objects(draw: st.DrawFn, children: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, children, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.booleans())
    if draw(st.booleans()):
        schema["minProperties"] = draw(st.integers(0, len(properties)))
    return schema


@st.composite
def _arrays(draw: st.DrawFn, children: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": draw(children)}
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(children, min_size=1, max_size=2))
    return schema


def _combined(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    branches = st.lists(children, min_size=1, max_size=3)
    return (
        _objects(children)
        | _arrays(children)
        | branches.map(lambda parts: {"anyOf": parts})
        | children.map(lambda part: {"allOf": [part]})
        | children.map(lambda part: {"description": "titled", "allOf": [part, {"title": "t"}]})
    )


SCHEMAS = st.recursive(
    _numbers()
    | _strings()
    | st.sampled_from([True, {}, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}])
    | st.lists(JSON_SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values})
    | JSON_SCALARS.map(lambda value: {"const": value}),
    _combined,
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(SCHEMAS)
def test_the_instance_of_a_schema_is_valid(schema: Any) -> None:
    jsonschema.Draft202012Validator(schema).validate(instance(schema))


@settings(max_examples=100, deadline=None)
@given(SCHEMAS)
def test_the_instance_of_a_schema_behind_a_reference_is_valid(schema: Any) -> None:
    outer = {"$defs": {"x/y": schema}, "type": "array", "items": {"$ref": "#/$defs/x~1y"}, "minItems": 2}
    jsonschema.Draft202012Validator(outer).validate(instance(outer))


@settings(max_examples=100, deadline=None)
@given(_numbers() | _strings(), st.integers(2, 6))
def test_items_that_must_differ_do(items: dict[str, Any], count: int) -> None:
    schema = {"type": "array", "items": items, "minItems": count, "uniqueItems": True}
    try:
        value = instance(schema)
    except SchemaError:
        assume(False)
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": ""}),
        ({"properties": {"n": {"minimum": 3}}, "required": ["n"]}, {"n": 3}),
        ({"type": "integer", "exclusiveMinimum": 1.5}, 2),
        ({"type": "integer", "multipleOf": 7, "minimum": 8}, 14),
        ({"type": "number", "maximum": -2.5}, -2.5),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.001),
        ({"type": ["null", "string"]}, ""),
        ({"type": "string", "format": "date"}, "2025-01-01"),
        (
            {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "uniqueItems": True},
            ["a", "b", "c"],
        ),
        ({"type": "array", "contains": {"const": 5}}, [5]),
        ({"type": "object", "minProperties": 2}, {"key0": None, "key1": None}),
        ({"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "boolean"}}}]}, {"a": False}),
        ({"allOf": [{"type": "number"}, {"type": "integer", "minimum": 1}]}, 1),
        ({"allOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, 2),
        ({"oneOf": [{"type": "string", "enum": []}, {"type": "integer"}]}, 0),
    ],
)
def test_the_instance_is_the_smallest(schema: Any, expected: Any) -> None:
    assert instance(schema) == expected


def test_a_recursive_schema_ends_as_early_as_it_can() -> None:
    schema = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
            }
        },
    }
    assert instance(schema) == {"next": None}


@pytest.mark.parametrize(
    "schema",
    [
        False,
        "string",
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "array", "minItems": 10_000_000},
        {"type": "string", "minLength": 10_000_000_000},
        {"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": [], "required": ["a"]},
        {"type": "object", "required": "a"},
        {"anyOf": [False, {"enum": []}]},
    ],
)
def test_a_schema_without_an_instance_is_an_error(schema: Any) -> None:
    with pytest.raises(SchemaError):
        instance(schema)


def test_a_schema_that_doubles_at_every_level_is_stopped() -> None:
    level: Any = {"type": "string"}
    for _ in range(40):
        level = {"type": "object", "properties": {"a": level, "b": level}, "required": ["a", "b"]}
    with pytest.raises(SchemaError, match="too large"):
        instance(level)


def test_a_schema_nested_a_thousand_deep_is_an_error() -> None:
    level: Any = {"type": "string"}
    for _ in range(1000):
        level = {"allOf": [level]}
    with pytest.raises(SchemaError):
        instance(level)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z]{3}-\d+$", r"^\d{4}-\d{2}-\d{2}$", r"^(foo|bar)+$", r"^[^\"a]+$", r"^\S+@\S+\.\w{2,}$",
        r"^(a+)+$", r"[A-Z]", r"^#[0-9a-fA-F]{6}$", r"^(?:\+1)?\s?\(\d{3}\)$", r"^(x)\1$", r"^.{2,5}$",
        r"^[^\d\s]\W\D\S$", r"",
    ],
)  # fmt: skip
def test_a_string_fits_its_pattern(pattern: str) -> None:
    jsonschema.validate(example(pattern), {"pattern": pattern})


def test_a_string_with_a_pattern_is_as_long_as_it_must_be() -> None:
    schema = {"type": "string", "pattern": "^[a-z]+$", "minLength": 90}
    jsonschema.validate(instance(schema), schema)


@pytest.mark.parametrize("pattern", [r"\p{L}+", "(", "(((((a{999}){999}){999}){999}){999})"])
def test_a_pattern_that_cannot_be_followed_gives_some_string(pattern: str) -> None:
    assert example(pattern, 3) == "xxx"
