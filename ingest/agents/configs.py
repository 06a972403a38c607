"""Turns a folder of files into the configs and prompts of agents, checked, versioned, and read again when they change.

    configs/agents/<agent_id>.toml     (or .yaml, .yml, .json)
    configs/prompts/<name>.toml

A look costs a `stat` a second at most. A changed file is taken when it is at rest and right; until then the last good
one counts, and `Configs.problems` has what is wrong with it.
"""

import difflib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import msgspec

from ingest.agents.config_files import SUFFIXES, ConfigFile, Stamp, is_settled, read_file, stamp_of, version_of
from ingest.agents.prompts import Prompt, read_prompt, versions
from ingest.errors import InvalidConfig, shown

if TYPE_CHECKING:
    from ingest.agents.bound import AgentStore
    from ingest.store import TrainingDataStore

T = TypeVar("T")
AGENTS, PROMPTS = "agents", "prompts"
_CHECK_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PLACE = re.compile(r"at `\$\.(\w+)((?:\[\d+\])*)")
_EXPECTED = {
    "temperature": "a number of 0 or more",
    "max_tokens": "a whole number of 1 or more",
    "tools": "a list of texts",
    "settings": "a table",
}

logger = logging.getLogger(__name__)


class AgentFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent's file may say."""

    agent_id: str = ""  # the file's name where it says nothing else
    name: str | None = None
    description: str | None = None
    model: str | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    prompt: str | None = None  # the name of a file in prompts/
    tools: tuple[str, ...] = ()
    settings: dict[str, object] = {}  # your own, to read and not to change: the version names what was in the file


class AgentConfig(AgentFields, frozen=True, kw_only=True):
    """An agent's config, with the prompt that it names."""

    version: str  # hash of its content and its prompt's
    template: Prompt | None = None

    @property
    def versions(self) -> dict[str, str]:
        """`config_version`, and `prompt_version` where there is a prompt: what goes into metadata."""
        return dict(versions(self.version, self.template))

    def render(self, /, **variables: object) -> str:
        """The text of the prompt with these values. Raises InvalidConfig, also where the config names no prompt."""
        if self.template is None:
            raise InvalidConfig(f"agent {self.agent_id}: prompt: expected a prompt's name in its config; write prompt")
        return self.template.render(**variables)

    def bind(
        self, store: "TrainingDataStore", *, instance_id: str | None = None, session_id: str | None = None
    ) -> "AgentStore":
        """The store's calls, with this agent's id and the versions of config and prompt in each record."""
        from ingest.agents.bound import AgentStore

        given = {"agent_id": self.agent_id, "instance_id": instance_id, "session_id": session_id}
        return AgentStore(store, given, self.versions)


def is_name(text: str) -> bool:
    """Whether a file may have this name: letters, digits, dots, dashes and underscores, at most 100."""
    return _NAME.fullmatch(text) is not None


class _Watched(Generic[T]):
    """One file, read again when it changes. Threads may share it: what is read twice is the same."""

    def __init__(self, path: Path, parse: Callable[[ConfigFile], T], clock: Callable[[], float]) -> None:
        """Read it. Raises InvalidConfig."""
        self.path, self._parse, self._clock = path, parse, clock
        file, self._stamp = read_file(path)
        self.value = parse(file)
        self.problem: InvalidConfig | None = None
        self._seen: Stamp | None = self._stamp
        self._due = clock() + _CHECK_S

    def current(self) -> T:
        """What the file says, or said when it last was right."""
        now = self._clock()
        if now >= self._due:
            self._due = now + _CHECK_S
            self._check()
        return self.value

    def _check(self) -> None:
        stamp = stamp_of(self.path)
        if stamp == self._seen or (stamp is not None and not is_settled(stamp)):
            return
        try:
            file, stamp = read_file(self.path)
            self.value, self.problem = self._parse(file), None
        except InvalidConfig as err:
            self.problem = err
            logger.warning("%s; the last good version stays in use", err)
        self._seen = stamp


class Configs:
    """The configs and prompts of a folder."""

    def __init__(self, folder: Path | str = "configs", *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is read yet."""
        self.folder = Path(folder).absolute()
        self._clock = clock
        self._agents: dict[str, _Watched[AgentFields]] = {}
        self._prompts: dict[str, _Watched[Prompt]] = {}
        self._made: dict[str, tuple[AgentFields, AgentConfig]] = {}
        self._unresolved: dict[str, InvalidConfig] = {}

    @property
    def problems(self) -> dict[str, InvalidConfig]:
        """What is wrong with files whose last good version is in use, such as `{"agents/support": …}`."""
        found = {f"{AGENTS}/{name}": one.problem for name, one in list(self._agents.items()) if one.problem}
        found |= {f"{PROMPTS}/{name}": one.problem for name, one in list(self._prompts.items()) if one.problem}
        return self._unresolved | found

    def agent(self, name: str) -> AgentConfig:
        """The config of the file of that name in agents/, as it is now.

        Raises InvalidConfig naming file, line, field, value and what was expected, if it never was right so far.
        """
        watched = self._agents.get(name)
        if watched is None:
            watched = _Watched(self._find(AGENTS, name), _read_agent, self._clock)
        fields = watched.current()
        made = self._made.get(name)
        try:
            prompt = None if fields.prompt is None else self._prompt_of(watched, fields.prompt)
        except InvalidConfig as err:
            if made is None:
                raise
            self._tell(f"{AGENTS}/{name}", err)
            return made[1]
        self._unresolved.pop(f"{AGENTS}/{name}", None)
        self._agents[name] = watched
        if made is None or made[0] is not fields or made[1].template is not prompt:
            made = self._made[name] = (fields, _make_agent(fields, prompt))
        return made[1]

    def prompt(self, name: str) -> Prompt:
        """The prompt of the file of that name in prompts/, as it is now. Raises InvalidConfig, as `agent`."""
        watched = self._prompts.get(name)
        if watched is None:
            watched = self._prompts[name] = _Watched(self._find(PROMPTS, name), read_prompt, self._clock)
        return watched.current()

    def names(self, kind: str = AGENTS) -> list[str]:
        """Names of the files in agents/ or prompts/, in alphabetical order."""
        folder = self.folder / kind
        return sorted({path.stem for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file()})

    def check(self) -> list[InvalidConfig]:
        """Read all files anew, and give what is wrong with them: [] if all is well."""
        fresh, wrong = Configs(self.folder), []
        looks = ((fresh.prompt, PROMPTS), (fresh.agent, AGENTS))
        for look, name in ((look, name) for look, kind in looks for name in self.names(kind)):
            try:
                look(name)
            except InvalidConfig as err:
                wrong.append(err)
        return wrong

    def _prompt_of(self, agent: _Watched[AgentFields], name: str) -> Prompt:
        if name not in self._prompts and name not in self.names(PROMPTS):
            file, _ = read_file(agent.path)
            raise file.wrong(
                "prompt", f"prompt={shown(name)}: expected one of {self._known(PROMPTS)}; {self._advice(PROMPTS, name)}"
            )
        return self.prompt(name)

    def _tell(self, key: str, err: InvalidConfig) -> None:
        if str(self._unresolved.get(key)) != str(err):
            logger.warning("%s; the last good version stays in use", err)
        self._unresolved[key] = err

    def _find(self, kind: str, name: str) -> Path:
        """The one file of that name. Raises InvalidConfig."""
        if not is_name(name):
            raise InvalidConfig(
                f"{self.folder / kind}: name {shown(name)}: expected letters, digits, '.', '_' and '-'; rename it"
            )
        found = [path for suffix in SUFFIXES if (path := self.folder / kind / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            raise InvalidConfig(f"{found[0]}:1: {found[1].name} is there too: expected one file a name; delete one")
        if not found:
            raise InvalidConfig(
                f"{self.folder / kind}: name {shown(name)}: expected one of {self._known(kind)}; "
                f"{self._advice(kind, name)}"
            )
        return found[0]

    def _known(self, kind: str) -> str:
        return ", ".join(self.names(kind)) or "none so far"

    def _advice(self, kind: str, name: str) -> str:
        near = difflib.get_close_matches(name, self.names(kind), 1)
        return f"write {near[0]}" if near else f"make {kind}/{name}.toml, or correct the folder"


def _make_agent(fields: AgentFields, prompt: Prompt | None) -> AgentConfig:
    version = version_of([fields, None if prompt is None else prompt.version])
    values = {name: getattr(fields, name) for name in fields.__struct_fields__}
    return AgentConfig(**values, version=version, template=prompt)


def _read_agent(file: ConfigFile) -> AgentFields:
    known = AgentFields.__struct_fields__
    file.check_fields(known, "put your own fields under settings")
    try:
        fields = msgspec.convert({"agent_id": file.path.stem, **file.values}, AgentFields)
    except msgspec.ValidationError as err:
        raise _wrong_type(file, err) from err
    if not fields.agent_id:
        raise file.wrong("agent_id", "agent_id='': expected an id; leave it out for the file's name")
    return fields


def _wrong_type(file: ConfigFile, err: msgspec.ValidationError) -> InvalidConfig:
    place = _PLACE.search(str(err))
    if place is None:
        return file.wrong("", f"{err}: expected an agent's fields; correct it")
    name, item = place[1], place[2]
    value = file.values[name]
    if item:
        value = value[int(item.strip("[]"))]
    expected = "text" if item else _EXPECTED.get(name, "text")
    advice = "put it in quotes" if expected == "text" else "correct it"
    return file.wrong(name, f"{name}{item}={shown(value)} ({type(value).__name__}): expected {expected}; {advice}")
