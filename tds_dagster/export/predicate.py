"""Turns a text such as `feedback.reward >= 1 AND severity = 'error'` into a condition that can only judge a record.

DuckDB's own parser reads the text. Each node of its tree must be one that is listed here, and the SQL that runs later
is written from the checked tree by DuckDB, never from the text: what was not checked cannot run.

A feedback value may be a number, a flag or a text, and not the same for every record. It is read as what it stands
beside: as a number in `feedback.reward >= 1`, as a text in `feedback.label LIKE 'good%'`, as a flag in
`NOT feedback.solved`; a value that cannot be read so is null there, and null never matches.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from ingest.errors import InvalidPredicate, shown
from ingest.records import Kind, kind_named

if TYPE_CHECKING:
    import duckdb

FEEDBACK = "feedback"
_MOST_CHARACTERS = 1 << 20  # a list of 25,000 ids fits
_NOWHERE = 1 << 32  # DuckDB gives 2**64 - 1 for a node that the text does not have

Node = dict[str, Any]  # DuckDB's JSON of a parsed expression


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATORS = frozenset(
    {
        "COMPARE_IN",
        "COMPARE_NOT_IN",
        "OPERATOR_IS_NULL",
        "OPERATOR_IS_NOT_NULL",
        "OPERATOR_NOT",
        "OPERATOR_COALESCE",
    }
)
# They depend on their arguments alone (no clock, no chance, no setting), read nothing and make no value that is much
# longer than what they are given.
_ARITHMETIC = _words("+ - * / // % abs round floor ceil ceiling sign trunc greatest least")
_MEASURES = _words(  # numbers of what is none
    "length strlen json_array_length date_part year month day hour minute second epoch epoch_ms dayofweek isodow"
)
_TEXT = _words(
    "~~ !~~ ~~* !~~* ~~~ like_escape not_like_escape ilike_escape not_ilike_escape ^@ || concat lower upper trim ltrim "
    "rtrim left right substring substr split_part contains starts_with ends_with suffix prefix strpos position "
    "instr regexp_matches regexp_full_match regexp_extract json_extract json_extract_string json_exists json_type "
    "json_valid json_contains ->> -> md5 sha256"
)
_OTHER = _words(
    "nullif ifnull if date_trunc to_days to_hours to_minutes to_seconds to_months to_years to_weeks "
    "list_value timezone isnan isfinite isinf json_keys"
)
_FUNCTIONS = _ARITHMETIC | _MEASURES | _TEXT | _OTHER
_NUMERIC_TYPES = _words(
    "tinyint smallint integer int bigint hugeint utinyint usmallint uinteger ubigint float real double decimal numeric"
)
_TYPES = (
    _NUMERIC_TYPES
    | _words("boolean bool varchar text string json date time interval timestamp timestamptz")
    | {"timestamp with time zone"}
)
_COLUMN_TYPES: Mapping[str, str] = {"integer": "BIGINT", "number": "DOUBLE", "timestamp": "TIMESTAMPTZ"}


class Predicate(msgspec.Struct, frozen=True):
    """A condition on the records of one kind, checked."""

    text: str  # as it was given, stripped
    columns: tuple[str, ...]  # curated columns that it reads, in the kind's order
    feedback: tuple[str, ...]  # names of feedback that it reads, sorted
    sql: str  # the same condition over the tables `records` and `feedback`, as DuckDB writes it


def parse_predicate(kind: str, text: str) -> Predicate:
    """Check a predicate over a kind's curated columns and `feedback.<name>`. Needs no data.

    Raises UnknownKind, and InvalidPredicate for what is no expression, no flag, reads a column that is not there, or
    holds anything but comparisons, arithmetic and the functions listed above.
    """
    checked = _Check(kind_named(kind), text.strip())
    return checked.predicate()


class _Check:
    """One text on its way to a Predicate."""

    def __init__(self, kind: Kind, text: str) -> None:
        self.kind, self.text = kind, text
        self._names = {column.name.casefold(): column.name for column in kind.columns}
        self.columns: set[str] = set()
        self.feedback: set[str] = set()

    def predicate(self) -> Predicate:
        import duckdb

        if not self.text:
            raise self._refusal("there is nothing in it")
        if len(self.text) > _MOST_CHARACTERS:
            raise self._refusal(f"it has {len(self.text):,} characters, of which {_MOST_CHARACTERS:,} can be checked")
        if any((ord(char) < 32 and char not in "\t\n\r") or 0xD800 <= ord(char) < 0xE000 for char in self.text):
            raise self._refusal("a control character or half a surrogate pair; write it as a JSON or SQL escape")
        with _open_connection(self.kind) as connection:
            try:
                tree, node = self._parse(connection)
                self._check(node)
                if _is_feedback(node):  # alone, it is a flag
                    node = _cast(node, "BOOLEAN")
                tree["statements"][0]["node"]["select_list"] = [node]
                sql = _expression_text(connection, tree)
            except RecursionError:
                raise self._refusal("it is nested too deeply; write long alternatives as IN (…)") from None
            except duckdb.Error as err:
                raise self._refusal(_reason(err)) from None
            self._require_flag(connection, sql)
        return Predicate(
            self.text,
            tuple(name for name in self.kind.types if name in self.columns),
            tuple(sorted(self.feedback)),
            sql,
        )

    def _parse(self, connection: "duckdb.DuckDBPyConnection") -> tuple[Node, Node]:
        """The statement around the text, as a tree, and the text's own node. There is nothing but these two."""
        statement = f"{_BEFORE}{self.text}{_AFTER}"  # the line feed ends a comment
        row = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [statement]).fetchone()
        tree: Node = json.loads(row[0]) if row is not None else {"error": True}
        if tree["error"]:
            where = tree.get("position")
            message = str(tree.get("error_message", "it cannot be parsed")).partition("\n")[0].removesuffix(_AFTER)
            raise self._refusal(message, None if where is None else int(where))
        statements = tree["statements"]
        node = statements[0]["node"]
        around = {name: value for name, value in node.items() if name not in {"select_list", "from_table"}}
        table = {name: value for name, value in node.get("from_table", {}).items() if name != "query_location"}
        is_alone = len(statements) == 1 and len(node.get("select_list", ())) == 1
        if not is_alone or (around, table) != _surroundings():
            raise self._refusal("more than one condition; expected one expression, without SELECT, FROM or `;`")
        (expression,) = node["select_list"]
        if expression["alias"]:
            raise self._refusal(f"a name ({shown(expression['alias'])}) behind the condition; leave it out")
        return tree, expression

    def _check(self, root: Node) -> None:
        """Refuse every node that is not listed, resolve names, and read feedback as what it stands beside."""
        waiting = [root]
        while waiting:
            node = waiting.pop()
            found = _REFUSALS.get(node["class"], _refused_class)(node)
            if found is not None:
                raise self._refusal(f"{found} cannot stand in a predicate", node.get("query_location"))
            if node["class"] == "COLUMN_REF":
                self._resolve(node)
            elif node["class"] == "LAMBDA" and node["lhs"]["class"] not in {"COLUMN_REF", "FUNCTION", "LAMBDA", "CAST"}:
                raise self._refusal("`->` binds weaker than all else: put (column->'key') in parentheses, or use ->>")
            children = list(_children(node))
            for child, _ in children:
                if child["class"] == "COLUMN_REF":  # before their neighbours are looked at
                    self._resolve(child)
            for child, put in children:
                if _is_feedback(child):
                    wanted = self._wanted(node, [other for other, _ in children])
                    put(child if wanted is None else _cast(child, wanted))
                elif child["class"] != "COLUMN_REF":
                    waiting.append(child)

    def _wanted(self, node: Node, operands: list[Node]) -> str | None:
        """The type that a feedback value in this node is read as; None: as it is."""
        kind, name = node["class"], str(node.get("function_name", "")).lower()
        if kind == "CONJUNCTION" or node["type"] == "OPERATOR_NOT":
            return "BOOLEAN"
        if name in _ARITHMETIC:
            return "DOUBLE"
        if name in _TEXT or name in {"length", "strlen", "json_array_length"}:
            return "VARCHAR"
        if kind in {"COMPARISON", "BETWEEN"} or node["type"] in {"COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_COALESCE"}:
            return next(filter(None, map(self._type_of, operands)), None)
        return None

    def _type_of(self, node: Node) -> str | None:
        """DOUBLE, BOOLEAN or VARCHAR where it can be seen."""
        if node["class"] == "CONSTANT":
            kinds = {"INTEGER": "DOUBLE", "NUMERIC": "DOUBLE", "BOOLEAN": "BOOLEAN", "STRING": "VARCHAR"}
            return kinds.get(node["literal"]["kind"])
        if _is_feedback(node):
            return None
        if node["class"] == "COLUMN_REF":
            return "DOUBLE" if self.kind.types[node["column_names"][-1]] in {"integer", "number"} else "VARCHAR"
        if node["class"] == "CAST":
            name = node["type_expr"]["type_name"].lower()
            return "DOUBLE" if name in _NUMERIC_TYPES else "BOOLEAN" if name.startswith("bool") else "VARCHAR"
        if node["type"] == "OPERATOR_COALESCE":
            return next(filter(None, map(self._type_of, node["children"])), None)
        name = str(node.get("function_name", "")).lower()
        return (
            "DOUBLE"
            if name in _ARITHMETIC | _MEASURES
            else "VARCHAR"
            if name in {"lower", "upper", "trim", "->>"}
            else None
        )

    def _resolve(self, node: Node) -> None:
        """Make a name one of `records` or of `feedback`."""
        path: list[str] = node["column_names"]
        where = node.get("query_location")
        if len(path) == 2 and path[0].casefold() == "records":
            path = path[1:]  # it was resolved already, or the user is thorough
        if len(path) == 2 and path[0].casefold() == FEEDBACK:
            same = [name for name in self.feedback if name != path[1] and name.casefold() == path[1].casefold()]
            if same:
                raise self._refusal(f"feedback.{path[1]} and feedback.{same[0]} differ in case only", where)
            self.feedback.add(path[1])
            node["column_names"] = [FEEDBACK, path[1]]
            return
        if len(path) > 1:
            hint = f"; write {path[0]}->>'$.{'.'.join(path[1:])}'" if path[0] in self.kind.documents else ""
            raise self._refusal(f"{'.'.join(path)}: expected a column, or feedback.<name>{hint}", where)
        name = self._names.get(path[0].casefold())
        if name is None:
            close = difflib.get_close_matches(path[0].casefold(), self._names, n=3)
            meant = f" did you mean {' or '.join(close)}?" if close else ""
            known = ", ".join(self.kind.types)
            raise self._refusal(f"{self.kind.name} has no column {shown(path[0])};{meant} it has {known}", where)
        self.columns.add(name)
        node["column_names"] = ["records", name]

    def _require_flag(self, connection: "duckdb.DuckDBPyConnection", sql: str) -> None:
        """Have DuckDB bind the condition, over no rows. Feedback without a cast is null there, which fits any type."""
        import duckdb

        names = ", ".join(f"NULL AS {quoted(name)}" for name in self.feedback) or "NULL"
        try:
            row = connection.execute(f"DESCRIBE SELECT {sql} FROM records, (SELECT {names}) AS feedback").fetchone()
        except duckdb.Error as err:
            raise self._refusal(_reason(err)) from None
        if row is None or row[1] not in {"BOOLEAN", '"NULL"'}:
            found = "nothing" if row is None else row[1]
            raise self._refusal(f"it gives {found}; expected true or false, so compare it with something")

    def _refusal(self, reason: str, position: int | None = None) -> InvalidPredicate:
        """The error; `position` is a byte of the statement."""
        where = ""
        if position is not None and len(_BEFORE) <= position < _NOWHERE:
            before = self.text.encode()[: position - len(_BEFORE)].decode(errors="ignore")
            where = f" at character {len(before) + 1}"
        return InvalidPredicate(
            f"predicate {shown(self.text)}{where}: {reason}. Expected one SQL condition over the columns of "
            f"{self.kind.name} and feedback.<name>, such as feedback.reward >= 1; correct it"
        )


def _reason(err: Exception) -> str:
    """What DuckDB says, without the kind of error and the line that it shows below."""
    line = str(err).partition("\n")[0]
    return line.partition("Error: ")[2] or line


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


_BEFORE, _AFTER = "SELECT ", "\n FROM records"


@lru_cache(maxsize=1)
def _surroundings() -> tuple[Node, Node]:
    """What `_BEFORE` and `_AFTER` are in the tree: the statement without its expression, and its table."""
    import duckdb

    with duckdb.connect() as connection:
        row = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [f"{_BEFORE}1{_AFTER}"]).fetchone()
    node = json.loads(row[0])["statements"][0]["node"] if row is not None else {}
    table = node.pop("from_table")
    del node["select_list"], table["query_location"]
    return node, table


def _open_connection(kind: Kind) -> "duckdb.DuckDBPyConnection":
    """A database in memory with an empty table `records`, which cannot reach files or the network."""
    import duckdb

    connection = duckdb.connect(
        config={"enable_external_access": "false", "autoinstall_known_extensions": "false", "threads": "1"}
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    columns = ", ".join(
        f"{quoted(name)} {_COLUMN_TYPES.get(of_type, 'VARCHAR')}" for name, of_type in kind.types.items()
    )
    connection.execute(f"CREATE TEMP TABLE records ({columns})")
    return connection


def _expression_text(connection: "duckdb.DuckDBPyConnection", tree: Node) -> str:
    """The SQL of the expression in a tree. Parsed again it has to be the same tree."""
    row = connection.execute("SELECT json_deserialize_sql($1::JSON)", [json.dumps(tree)]).fetchone()
    statement = str(row[0]) if row is not None else ""
    before, after = "SELECT ", " FROM records"
    if not (statement.startswith(before) and statement.endswith(after)):
        raise InvalidPredicate(f"{shown(statement)}: expected one condition; write the predicate in another way")
    sql = statement[len(before) : -len(after)]
    row = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [f"{_BEFORE}{sql}{_AFTER}"]).fetchone()
    again = json.loads(row[0]) if row is not None else {}
    if again.get("error", True) or _without_places(again) != _without_places(tree):
        raise InvalidPredicate(f"{shown(sql)}: DuckDB reads it in two ways; write the predicate in another way")
    return sql


def _without_places(node: object) -> object:
    """A tree without what its text's layout decides (places, and whether a function stands as an operator)."""
    if isinstance(node, dict):
        layout = {"query_location", "query_location_length", "is_operator"}
        cleaned = {name: _without_places(value) for name, value in node.items() if name not in layout}
        return {name: value for name, value in cleaned.items() if value not in (None, "", False, [], {})}
    return [_without_places(value) for value in node] if isinstance(node, list) else node


def _children(node: Node) -> Iterator[tuple[Node, Callable[[Node], None]]]:
    """Each expression below a node, with a function that puts another one in its place."""
    for name in ("left", "right", "input", "lower", "upper", "child", "else_expr", "lhs", "expr"):
        if isinstance(node.get(name), dict):
            yield node[name], _putter(node, name)
    for place, child in enumerate(node.get("children", ())):
        yield child, _putter(node["children"], place)
    for argument in node.get("arguments", ()):
        yield argument["expression"], _putter(argument, "expression")
    for check in node.get("case_checks", ()):
        yield check["when_expr"], _putter(check, "when_expr")
        yield check["then_expr"], _putter(check, "then_expr")


def _putter(holder: Any, place: str | int) -> Callable[[Node], None]:  # noqa: ANN401 - a node or a list of nodes
    def put(node: Node) -> None:
        holder[place] = node

    return put


def _is_feedback(node: Node) -> bool:
    return bool(node["class"] == "COLUMN_REF" and node["column_names"][0] == FEEDBACK)


def _cast(node: Node, type_name: str) -> Node:
    """`TRY_CAST(node AS type)`."""
    of_type = {"class": "TYPE", "type": "TYPE", "type_name": type_name, "qualified_name": {"path": [type_name]}}
    return {"class": "CAST", "type": "OPERATOR_CAST", "child": node, "try_cast": True, "type_expr": of_type}


def _refused_class(node: Node) -> str | None:
    return f"{node['class'].lower().replace('_', ' ')} expressions"


def _refused_function(node: Node) -> str | None:
    name = str(node["function_name"]).lower()
    has_more = node["filter"] or node["order_bys"]["orders"] or node["distinct"] or node["export_state"]
    is_qualified = node["schema"] or node["catalog"] or len(node["qualified_name"]["path"]) != 1
    if name not in _FUNCTIONS or has_more or is_qualified or any(argument["name"] for argument in node["arguments"]):
        return f"the function {shown(name)}, or what is inside its parentheses,"
    return None


def _refused_type(node: Node) -> str | None:
    of_type = node["type_expr"]
    is_known = of_type["class"] == "TYPE" and of_type["type_name"].lower() in _TYPES
    is_plain = not (of_type.get("schema") or of_type.get("catalog")) and len(of_type["qualified_name"]["path"]) == 1
    arguments = of_type.get("children", ())
    if is_known and is_plain and all(argument["class"] == "CONSTANT" for argument in arguments):
        return None
    return f"the type {shown(of_type.get('type_name'))}"


_REFUSALS: Mapping[str, Callable[[Node], str | None]] = {
    "CONSTANT": lambda _: None,
    "COLUMN_REF": lambda _: None,
    "COMPARISON": lambda _: None,
    "CONJUNCTION": lambda _: None,
    "BETWEEN": lambda _: None,
    "CASE": lambda _: None,
    "LAMBDA": lambda node: None if node["syntax_type"] == "SINGLE_ARROW" else "a lambda",
    "CAST": _refused_type,
    "FUNCTION": _refused_function,
    "OPERATOR": lambda node: None if node["type"] in _OPERATORS else node["type"].lower().replace("_", " "),
}
