"""Turns rows of the old tables of configs and prompts into files of `ingest.agents.configs`, in JSON.

A file that is there with other content is somebody's and stays; the row is then refused. What a config's file has no
field for goes into its `settings`. The variables of an old prompt, `{name}`, become Jinja's `{{ name }}`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ingest.agents.config_files import SUFFIXES
from ingest.agents.configs import AGENTS, PROMPTS, AgentFields, is_name
from ingest.errors import InvalidConfig, shown
from ingest.pipeline.partitions import make_folder, replacing

_VARIABLE = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)\}(?!\})")
_TABLE_ONLY = ("created_at", "updated_at")


def write_config(folder: Path, row: Mapping[str, Any]) -> bool:
    """Write an agent's config, and the prompt that it has; whether the config is new. Raises InvalidConfig."""
    agent_id = _checked_name("agent_id", row.get("agent_id"))
    text = row.get("system_prompt")
    if text:
        _write(folder / PROMPTS, agent_id, {"template": _template(str(text))})
    own = {name for name in AgentFields.__struct_fields__ if name not in {"prompt", "settings", "model", "tools"}}
    fields: dict[str, object] = {name: row[name] for name in own if row.get(name) is not None}
    model, tools = row.get("model_config") or {}, row.get("tools") or []
    rest = {
        name: value
        for name, value in row.items()
        if name not in {*own, "system_prompt", "tools", *_TABLE_ONLY} and value not in (None, [], {})
    }
    if isinstance(model, dict) and isinstance(model.get("model"), str):
        fields["model"] = model["model"]
    if all(isinstance(tool, str) for tool in tools):
        fields["tools"] = tools
    else:  # definitions and not names
        rest["tools"] = tools
    fields |= {"prompt": agent_id} if text else {}
    fields |= {"settings": rest} if rest else {}
    try:
        msgspec.convert(fields, AgentFields)
    except msgspec.ValidationError as err:
        raise InvalidConfig(f"agent {agent_id}: {err}; correct the row") from err
    return _write(folder / AGENTS, agent_id, fields)


def write_prompt(folder: Path, row: Mapping[str, Any]) -> bool:
    """Write a prompt's two templates as `<name>.system` and `<name>.user`; whether one is new. Raises InvalidConfig."""
    name = _checked_name("template_id", row.get("template_id"))
    said = {"description": row["description"]} if row.get("description") else {}
    written = [
        _write(folder / PROMPTS, f"{name}.{part}", {"template": _template(str(row[f"{part}_template"])), **said})
        for part in ("system", "user")
        if row.get(f"{part}_template")
    ]
    if not written:
        raise InvalidConfig(f"prompt {name}: no template: expected system_template or user_template; correct the row")
    return any(written)


def _checked_name(field: str, value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise InvalidConfig(
            f"{field}={shown(value)}: expected letters, digits, dots, dashes and underscores, for it names a file; "
            "write the file by hand"
        )
    return value


def _template(text: str) -> str:
    return text if "{{" in text or "{%" in text else _VARIABLE.sub(r"{{ \1 }}", text)


def _write(folder: Path, name: str, fields: Mapping[str, object]) -> bool:
    """Write one file; False if it is there with the same content. Raises InvalidConfig for another one."""
    content = msgspec.json.format(msgspec.json.encode(fields, order="sorted"), indent=2) + b"\n"
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            if path.read_bytes() == content:
                return False
            raise InvalidConfig(f"{path}: there already, with other content: expected no such file; compare the two")
    make_folder(folder)
    with replacing(folder / f"{name}.json") as out:
        out.write(content)
    return True
