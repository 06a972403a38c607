"""Turns a prompt's file into a template that is rendered in a sandbox, with every variable given or an error.

Templates are Jinja's. The sandbox keeps a template from reaching into the program: attributes with underscores, and
calls that change what is passed, are refused. It does not keep one from taking long: templates are your own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.agents.config_files import ConfigFile, version_of
from ingest.errors import InvalidConfig, MissingExtra, shown

if TYPE_CHECKING:
    import jinja2

MOST_CHARACTERS = 1 << 20  # of a prompt, rendered
_FIELDS = ("template", "description")


@dataclass(frozen=True)
class Prompt:
    """A template, checked and ready."""

    name: str
    template: str
    version: str  # of the template's text
    variables: tuple[str, ...]  # names that the template uses, in alphabetical order
    path: Path
    description: str = ""
    compiled: "jinja2.Template | None" = field(default=None, repr=False, compare=False)

    def render(self, /, **variables: object) -> str:
        """The prompt's text with these values.

        Raises InvalidConfig for a variable that is missing, an expression that is refused or fails, or more than
        `MOST_CHARACTERS`.
        """
        template = _compile(self.path, self.template) if self.compiled is None else self.compiled
        parts: list[str] = []
        size = 0
        try:
            for part in template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MOST_CHARACTERS:
                    break
        except Exception as err:  # an expression of the template, or a value's own __str__, may raise anything
            said = f"{self.path}: template: {getattr(err, 'message', None) or repr(err)}"
            raise InvalidConfig(
                f"{said}: expected variables {_listed(self.variables)}, given {_listed(sorted(variables))}; "
                "pass what is missing to render(), or correct the template"
            ) from err
        if size > MOST_CHARACTERS:
            raise InvalidConfig(
                f"{self.path}: template: more than {MOST_CHARACTERS} characters come out: expected a prompt; "
                "pass shorter values, or repeat less"
            )
        return "".join(parts)


def read_prompt(file: ConfigFile) -> Prompt:
    """A prompt of a file's values. Raises InvalidConfig naming file, line, field, value and what was expected."""
    file.check_fields(_FIELDS, "take it out")
    texts: dict[str, str] = {}
    for name in _FIELDS:
        value = file.values.get(name, "")
        if not isinstance(value, str):
            kind = type(value).__name__
            raise file.wrong(name, f"{name}={shown(value)} ({kind}): expected text; put it in quotes")
        texts[name] = value
    if not texts["template"]:
        raise file.wrong("template", "template: expected the prompt's text; write it")
    compiled = _compile(file.path, texts["template"], file)
    return Prompt(
        name=file.path.stem,
        version=version_of({"template": texts["template"]}),
        variables=_variables(texts["template"]),
        path=file.path,
        compiled=compiled,
        **texts,
    )


def _listed(names: Any) -> str:  # noqa: ANN401 - any names
    return ", ".join(names) or "none"


def _compile(path: Path, text: str, file: ConfigFile | None = None) -> "jinja2.Template":
    sandbox = _sandbox()
    import jinja2

    try:
        return sandbox.from_string(text)
    except jinja2.TemplateSyntaxError as err:
        line = "" if file is None else f":{file.lines.get('template', 1)}"
        raise InvalidConfig(
            f"{path}{line}: template: line {err.lineno} of it: {err.message}: expected a Jinja template; mend it"
        ) from err


def _variables(text: str) -> tuple[str, ...]:
    from jinja2 import meta

    return tuple(sorted(meta.find_undeclared_variables(_sandbox().parse(text))))


@cache
def _sandbox() -> "jinja2.Environment":
    """The environment that all templates run in. Raises MissingExtra."""
    try:
        from jinja2 import StrictUndefined  # 40 ms to import
        from jinja2.exceptions import SecurityError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as err:
        raise MissingExtra(err.name) from err

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses also what makes a gigabyte of three letters."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - Jinja's
            """Multiply numbers, and texts up to the limit."""
            if operator == "**":
                raise SecurityError("** is refused in a template")
            for text, times in ((left, right), (right, left)):
                if hasattr(text, "__len__") and isinstance(times, int) and len(text) * times > MOST_CHARACTERS:
                    raise SecurityError(f"* makes more than {MOST_CHARACTERS} characters")
            return super().call_binop(context, operator, left, right)

    return Sandbox(  # a prompt is no HTML: nothing is escaped
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )


def versions(config_version: str, prompt: Prompt | None) -> Mapping[str, str]:
    """What goes into the metadata of an agent's records."""
    return {"config_version": config_version, **({} if prompt is None else {"prompt_version": prompt.version})}
