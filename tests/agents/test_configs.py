"""Configs and prompts are files: checked with errors that teach, versioned by content, and read again when changed."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingest import InvalidRecord, TrainingDataStore
from ingest.agents.config_files import parse_file, version_of
from ingest.agents.configs import Configs
from ingest.errors import InvalidConfig
from ingest.pipeline.partitions import DataPaths

TOML = """
model = "llama3:8b"
temperature = 0.2
prompt = "greeting"
tools = ["search"]

[settings]
language = "en"
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "agents" / "support.toml", TOML)
    put(tmp_path / "prompts" / "greeting.toml", 'template = "Hello {{ customer }}"')
    return tmp_path


def put(path: Path, text: str) -> None:
    """A file that has been at rest for a while, each time a bit less."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    put.age -= 1  # type: ignore[attr-defined]  # a counter
    moment = time.time() - put.age  # type: ignore[attr-defined]  # the same
    os.utime(path, (moment, moment))


put.age = 100_000  # type: ignore[attr-defined]  # a counter


def refused(folder: Path, name: str, text: str) -> str:
    put(folder / "agents" / name, text)
    with pytest.raises(InvalidConfig) as raised:
        Configs(folder).agent(name.partition(".")[0])
    return str(raised.value).replace(f"{folder}/agents/", "")


def test_a_file_becomes_a_typed_config_named_as_the_file(folder: Path) -> None:
    config = Configs(folder).agent("support")
    assert (config.agent_id, config.model, config.temperature) == ("support", "llama3:8b", 0.2)
    assert (config.tools, config.settings) == (("search",), {"language": "en"})
    assert config.render(customer="Ada") == "Hello Ada"
    assert config.versions == {
        "config_version": config.version,
        "prompt_version": Configs(folder).prompt("greeting").version,
    }


def test_the_same_content_has_the_same_version_in_every_format(folder: Path) -> None:
    version = Configs(folder).agent("support").version
    values = {"model": "llama3:8b", "temperature": 0.2, "prompt": "greeting", "tools": ["search"]}
    text = json.dumps({"settings": {"language": "en"}, **values})
    yaml = "settings: {language: en}\ntools:\n- search\nprompt: greeting\ntemperature: 0.20\nmodel: llama3:8b\n"
    for suffix, form in (("json", text), ("yaml", yaml), ("yml", text)):
        (folder / "agents" / "support.toml").unlink(missing_ok=True)
        put(folder / "agents" / f"support.{suffix}", form)
        assert Configs(folder).agent("support").version == version, suffix
        (folder / "agents" / f"support.{suffix}").unlink()


def test_another_text_of_the_prompt_is_another_version_of_the_config(folder: Path) -> None:
    before = Configs(folder).agent("support")
    put(folder / "prompts" / "greeting.toml", 'template = "Good day {{ customer }}"')
    after = Configs(folder).agent("support")
    assert before.version != after.version


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff\ufffe\uffff")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abcdef", min_size=1), PLAIN, max_size=4))
def test_json_and_yaml_of_any_values_read_as_the_same(values: dict[str, Any]) -> None:
    import yaml

    as_json = parse_file(Path("a.json"), json.dumps(values).encode()).values
    as_yaml = parse_file(Path("a.yaml"), yaml.safe_dump(values, allow_unicode=True).encode()).values
    assert as_json == values
    assert version_of(as_yaml) == version_of(as_json)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", 'model = "m"\n\ntemperature = "hot"', "a.toml:3: temperature='hot' (str): expected a number of 0"),
        ("a.yaml", "model: m\ntools:\n- x\n- 7\n", "a.yaml:2: tools[1]=7 (int): expected text; put it in quotes"),
        ("a.json", '{\n "description": "{x:\\n}",\n "max_tokens": 0\n}', "a.json:3: max_tokens=0 (int): expected a wh"),
        ("a.toml", 'description = """\nmodel = 3\n"""\nmodel = 3', "a.toml:4: model=3 (int): expected text"),
        ("a.toml", "\nmodle = 'm'", "a.toml:2: modle: expected one of agent_id, name, description, model, "),
        ("a.yaml", "model: m\nlanguage: en", "settings; put your own fields under settings"),
        ("a.toml", "model = ", "a.toml:1: Invalid value"),
        ("a.yaml", "model: m\n  x: [", "a.yaml:2: "),
        ("a.json", '{"model":\n}', "a.json:2: Expecting value: expected JSON"),
        ("a.yaml", "model: m\nmodel: n", "a.yaml:2: model: expected it once"),
        ("a.json", '{"model": "m",\n"model": "n"}', "model: expected it once"),
        ("a.yaml", "settings: {x: &a [1], y: *a}", "a.yaml:1: *a: expected a value, no alias"),
        ("a.yaml", "settings:\n  on: 1", "a.yaml:2: key on: expected text; put it in quotes"),
        ("a.yaml", "name: !!python/object:os.system x", "a.yaml:1: could not determine a constructor"),
        ("a.yaml", "- a", "expected a table of fields"),
        ("a.yaml", "settings: {x: .nan}", "settings=nan: expected a finite number"),
        ("a.json", '{"settings": ' + "[" * 40 + "]" * 40 + "}", "expected 32 levels at most"),
        ("a.toml", "\nprompt = 'greting'", "a.toml:2: prompt='greting': expected one of greeting; write greeting"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_field_value_and_remedy(
    folder: Path, name: str, text: str, message: str
) -> None:
    assert message in refused(folder, name, text)


@pytest.mark.parametrize("name", ["../support", "", "a/b", ".hidden", "x" * 200])
def test_a_name_reaches_no_file_outside_of_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match="expected letters"):
        Configs(folder).agent(name)


def test_a_name_that_is_not_there_is_answered_with_those_that_are(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="expected one of support; write support"):
        Configs(folder).agent("suport")


def test_a_change_is_taken_at_the_next_look_a_second_later(folder: Path) -> None:
    clock = Clock()
    configs = Configs(folder, clock=clock)
    first = configs.agent("support")
    put(folder / "agents" / "support.toml", TOML.replace("0.2", "0.9"))
    assert configs.agent("support") is first
    clock.now = 1.5
    assert configs.agent("support").temperature == 0.9
    put(folder / "prompts" / "greeting.toml", 'template = "Hi {{ customer }}"')
    clock.now = 3
    assert configs.agent("support").render(customer="Ada") == "Hi Ada"


def test_a_broken_edit_keeps_the_last_good_version_and_tells_so_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    configs = Configs(folder, clock=clock)
    first = configs.agent("support")
    broken = (TOML.replace("0.2", '"hot"'), TOML.replace("greeting", "gone"))
    for number, text in enumerate(broken, 1):
        put(folder / "agents" / "support.toml", text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for step in range(3):
                clock.now += 2 + step
                assert configs.agent("support") is first
        assert len(caplog.records) == 1, number
        assert list(configs.problems) == ["agents/support"]
    put(folder / "agents" / "support.toml", TOML)
    clock.now += 2
    assert configs.agent("support").version == first.version
    assert configs.problems == {}


def test_a_file_that_is_being_written_is_left_alone(folder: Path) -> None:
    clock = Clock()
    configs = Configs(folder, clock=clock)
    first = configs.agent("support")
    path = folder / "agents" / "support.toml"
    path.write_text("model = 'half'", encoding="utf-8")
    now = time.time() + 0.015  # within the 20 ms, however slow this machine is at the next lines
    os.utime(path, (now, now))
    clock.now = 2
    seen = configs.agent("support")
    assert seen is first or time.time() - now > 0.02


def test_all_that_is_wrong_in_a_folder_is_found_at_once(folder: Path) -> None:
    assert Configs(folder).check() == []
    put(folder / "agents" / "a.toml", "x = 1")
    put(folder / "prompts" / "b.yaml", "template: '{{ x'")
    assert len(Configs(folder).check()) == 2


def test_a_missing_variable_is_named_with_those_that_are_known(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="'customer' is undefined: expected variables customer, given custmer"):
        Configs(folder).prompt("greeting").render(custmer="Ada")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ x.append(1) }}",
        "{{ ''|attr('__class__') }}",
        "{% include '/etc/passwd' %}",
        "{{ 9 ** 999999999 }}",
        "{{ 'a' * 99999999999 }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_reaches_out_or_never_ends_is_refused(folder: Path, template: str) -> None:
    put(folder / "prompts" / "attack.json", json.dumps({"template": template}))
    with pytest.raises(InvalidConfig, match="template"):
        Configs(folder).prompt("attack").render(x=[])


def test_a_template_that_is_none_is_told_with_its_line(folder: Path) -> None:
    put(folder / "prompts" / "bad.yaml", "description: d\ntemplate: |\n  one\n  {{ two\n")
    with pytest.raises(InvalidConfig, match=r"bad.yaml:2: template: line \d of it"):
        Configs(folder).prompt("bad")


def test_a_bound_stores_records_carry_the_agent_and_its_versions(folder: Path, store: TrainingDataStore) -> None:
    import asyncio
    import csv

    config = Configs(folder).agent("support")
    agent = config.bind(store, session_id="s1")
    agent.sync.store_agent_event("thought", payload={"a": 1}, metadata={"mine": 1})
    asyncio.run(agent.store_tool_execution("e1", tool_name="search"))
    asyncio.run(agent.store_agent_task("t1", "another"))
    store.sync.flush()
    rows = {}
    for kind in ("events", "tool_executions", "tasks"):
        (path,) = (DataPaths(store.settings.data_dir).root / "training" / kind).glob("*.csv")
        with path.open(newline="") as file:
            (rows[kind],) = csv.DictReader(file)
    assert [row["agent_id"] for row in rows.values()] == ["support", "support", "another"]
    assert {row["session_id"] for row in rows.values()} == {"s1"}
    assert json.loads(rows["events"]["metadata"]) == {"mine": 1, **config.versions}
    assert json.loads(rows["tool_executions"]["metadata"]) == config.versions
    with pytest.raises(InvalidRecord, match="expected a dict or None"):
        agent.sync.store_agent_event("thought", metadata=[1])


def test_a_config_cannot_be_changed(folder: Path) -> None:
    config = Configs(folder).agent("support")
    with pytest.raises(AttributeError):
        config.model = "other"  # type: ignore[misc]  # the point
    assert isinstance(config, msgspec.Struct)
