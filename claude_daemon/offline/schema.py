"""The smallest JSON instance of a JSON schema. Pure, deterministic, makes no request, bounded in work.

Understands draft 2020-12 as far as models are asked for it: types, const, enum, objects, arrays, strings
with format and pattern, numbers with bounds and multipleOf, local `$ref`, allOf, anyOf, oneOf (the first
branch that has an instance). Ignores not, if, dependent* and unevaluated*.
"""

from typing import Any, Final

from claude_daemon.offline.scalars import Schema, SchemaError, count, number, string

MAX_NODES: Final = 20_000
"""Schemas visited for one instance; a real one needs hundreds, a hostile one ends in some 50 ms."""
MAX_DEPTH: Final = 100
"""Nesting of one instance; keeps far from Python's own limit."""
MAX_ITEMS: Final = 1_000
"""Longest array, and most properties, that a schema may demand."""

_TYPE_HINTS: Final = (
    ("object", ("properties", "required", "additionalProperties", "minProperties")),
    ("array", ("items", "prefixItems", "minItems", "contains")),
    ("string", ("minLength", "maxLength", "pattern", "format")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)


def instance(schema: object) -> Any:
    """The smallest instance of `schema`. Raises SchemaError."""
    try:
        return _Builder(schema).build(schema, frozenset(), 0)
    except (TypeError, AttributeError, RecursionError) as error:
        raise SchemaError("malformed") from error


class _Builder:
    """Builds one instance; holds the root that `$ref` points into and the work done so far.

    `open_refs` are the references being expanded on the way to a node. A smallest instance never contains
    itself, so meeting one of them again means that this way has no end.
    """

    def __init__(self, root: object) -> None:
        self._root = root
        self._nodes = 0
        self._depth = 0

    def build(self, schema: object, open_refs: frozenset[str], salt: int) -> Any:
        """An instance of `schema`; instances for different salts differ where the schema allows it."""
        self._nodes += 1
        if self._nodes > MAX_NODES or self._depth > MAX_DEPTH:
            raise SchemaError("too large")
        self._depth += 1
        try:
            flat, open_refs = self._expand(schema, open_refs)
            for key in ("anyOf", "oneOf"):
                if key in flat:
                    return self._first_branch(flat, key, open_refs, salt)
            return self._by_type(flat, open_refs, salt)
        finally:
            self._depth -= 1

    def _expand(self, schema: object, open_refs: frozenset[str]) -> tuple[Schema, frozenset[str]]:
        """The schema with `$ref` and allOf merged in, and the references this opened."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SchemaError("too large")
        if schema is True:
            return {}, open_refs
        if not isinstance(schema, dict):
            raise SchemaError("allows nothing" if schema is False else "not a schema")
        flat = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        opened = open_refs
        if "$ref" in schema:
            pointer = schema["$ref"]
            if pointer in open_refs:
                raise SchemaError(f"$ref {pointer} requires itself")
            part, part_refs = self._expand(_resolve(self._root, pointer), open_refs | {pointer})
            flat, opened = _merge(part, flat), opened | part_refs
        for sub in _list(schema, "allOf"):
            part, part_refs = self._expand(sub, open_refs)
            flat, opened = _merge(flat, part), opened | part_refs
        return flat, opened

    def _first_branch(self, flat: Schema, key: str, open_refs: frozenset[str], salt: int) -> Any:
        rest = {name: value for name, value in flat.items() if name != key}
        branches = _list(flat, key)
        for index in range(len(branches)):
            branch = branches[(index + salt) % len(branches)]
            try:
                return self.build({"allOf": [rest, branch]}, open_refs, salt)
            except SchemaError:
                if self._nodes > MAX_NODES:
                    raise
        raise SchemaError(f"{key}: no branch has an instance")

    def _by_type(self, flat: Schema, open_refs: frozenset[str], salt: int) -> Any:
        kind = _kind(flat)
        if "const" in flat:
            return flat["const"]
        if "enum" in flat:
            return _choice(flat, salt)
        if kind == "object":
            return self._object(flat, open_refs, salt)
        if kind == "array":
            return self._array(flat, open_refs, salt)
        if kind == "string":
            return string(flat, salt)
        if kind in ("integer", "number"):
            return number(flat, salt, integer=kind == "integer")
        if kind == "boolean":
            return bool(salt % 2)
        return None

    def _object(self, flat: Schema, open_refs: frozenset[str], salt: int) -> dict[str, Any]:
        properties = flat.get("properties", {})
        names = list(dict.fromkeys(_list(flat, "required")))
        fewest = count(flat, "minProperties", MAX_ITEMS)
        names += [name for name in properties if name not in names][: max(0, fewest - len(names))]
        names += [f"key{index}" for index in range(fewest - len(names))]
        if len(names) > MAX_ITEMS:
            raise SchemaError("too large")
        others = flat.get("additionalProperties", True)
        return {name: self.build(properties.get(name, others), open_refs, salt) for name in names}

    def _array(self, flat: Schema, open_refs: frozenset[str], salt: int) -> list[Any]:
        wanted = count(flat, "minContains", MAX_ITEMS, default=1) if "contains" in flat else 0
        fixed = _list(flat, "prefixItems")
        others = flat.get("items", True)
        values: list[Any] = []
        for index in range(max(count(flat, "minItems", MAX_ITEMS), wanted)):
            schema = fixed[index] if index < len(fixed) else others
            if index < wanted:
                schema = {"allOf": [schema, flat["contains"]]}
            values.append(self._item(schema, open_refs, salt, values if flat.get("uniqueItems") else []))
        return values

    def _item(self, schema: object, open_refs: frozenset[str], salt: int, taken: list[Any]) -> Any:
        for extra in range(len(taken) + 1):
            value = self.build(schema, open_refs, salt + extra)
            if not any(_same(value, other) for other in taken):
                return value
        raise SchemaError("uniqueItems: not enough different items")


def _resolve(root: object, pointer: object) -> object:
    """What a local JSON pointer (`#/$defs/a`) names. A remote one is an error: nothing is ever fetched."""
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        raise SchemaError(f"$ref {pointer!r} is not local")
    node = root
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isascii() and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise SchemaError(f"$ref {pointer} names nothing")
    return node


def _merge(first: Schema, second: Schema) -> Schema:
    """One schema that demands what both demand."""
    merged = {**first, **second}
    for key in first.keys() & second.keys():
        merged[key] = _both(key, first[key], second[key])
    return merged


def _both(key: str, one: Any, two: Any) -> Any:
    if key == "properties":
        shared = {name: {"allOf": [one[name], two[name]]} for name in one.keys() & two.keys()}
        return {**one, **two, **shared}
    if key == "required":
        return [*one, *two]
    if key in ("items", "additionalProperties"):
        return {"allOf": [one, two]}
    if key in ("anyOf", "oneOf"):
        return [{"allOf": [a, b]} for a in one for b in two][:MAX_ITEMS]
    if key == "enum":
        return [value for value in one if value in two]
    if key == "type":
        return _common_types(one, two)
    if key.startswith(("min", "exclusiveMin")):
        return max(one, two)
    if key.startswith(("max", "exclusiveMax")):
        return min(one, two)
    return two


def _common_types(one: Any, two: Any) -> list[str]:
    first, second = _types(one), _types(two)
    common = [kind for kind in first if kind in second]
    if "integer" in (*first, *second) and "number" in (*first, *second) and "integer" not in common:
        common.append("integer")
    return common


def _types(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _kind(flat: Schema) -> str:
    """The type to build: the first that is not null, else what the keywords hint at."""
    if "type" in flat:
        kinds = _types(flat["type"])
        if not kinds:
            raise SchemaError("type: none fits all parts")
        return next((kind for kind in kinds if kind != "null"), "null")
    return next((kind for kind, keys in _TYPE_HINTS if any(key in flat for key in keys)), "null")


_PYTHON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,),
    "number": (int, float), "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def _is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _PYTHON_TYPES.get(kind, ()))


def _choice(flat: Schema, salt: int) -> Any:
    options = _list(flat, "enum")
    if "type" in flat:
        options = [value for value in options if any(_is_a(value, kind) for kind in _types(flat["type"]))]
    if not options:
        raise SchemaError("enum: nothing fits")
    return options[salt % len(options)]


def _list(flat: Schema, key: str) -> list[Any]:
    value = flat.get(key, [])
    if not isinstance(value, list):
        raise SchemaError(f"{key}: must be a list")
    return value


def _same(one: Any, two: Any) -> bool:
    """Equal as JSON: unlike Python's, its true is not 1."""
    return bool(one == two) and isinstance(one, bool) == isinstance(two, bool)
