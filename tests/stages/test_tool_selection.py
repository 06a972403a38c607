"""Every tool call is an example of what the agent knew before it, or is counted with the reason why not."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ingest import Settings, TrainingDataStore
from tds_dagster.datasets import tool_selection
from tds_dagster.datasets.recipe import read_recipe
from tds_dagster.datasets.sources import open_sources

Json = Any
START = datetime(2024, 5, 15, 8, 30, tzinfo=UTC)


class Agent:
    """Tells the store what an agent does, a second after the other."""

    def __init__(self, store: TrainingDataStore, session_id: str | None = "s1", agent_id: str = "a1") -> None:
        self._store = store
        self._ids: dict[str, Any] = {"session_id": session_id, "agent_id": agent_id}
        self._now = START

    def _tick(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    def says(self, role: str, content: str | None = "", **message: Json) -> str:
        payload = {"role": role, "content": content, **message}
        return self.tells(f"{role}_message", payload)

    def tells(self, event_type: str, payload: Json) -> str:
        return str(self._store.sync.store_agent_event(event_type, payload=payload, timestamp=self._tick(), **self._ids))

    def calls(self, *names: str, **arguments: Json) -> str:
        tool_calls = [
            {"id": f"x{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for n, name in enumerate(names)
        ]
        return self.says("assistant", None, tool_calls=tool_calls)

    def runs(self, name: str, params: Json, result: Json = "ok", task_id: str | None = None, **more: Json) -> str:
        moment = self._tick()
        return str(
            self._store.sync.store_tool_execution(
                f"x-{moment.timestamp()}", task_id=task_id, tool_name=name, input_params=params, output_result=result,
                timestamp=moment, **self._ids, **more,
            )
        )  # fmt: skip

    def asks_and_calls(self, name: str = "find", **arguments: Json) -> str:
        """A whole exchange; gives the id of the tool execution."""
        self.says("user", f"Please {name}.")
        self.calls(name, **arguments)
        record_id = self.runs(name, arguments)
        self.says("tool", "ok", tool_call_id="x0")
        return record_id


class Made:
    """What became of a range."""

    def __init__(self, settings: Settings, store: TrainingDataStore, **recipe: Json) -> None:
        store.sync.flush()
        recipe = {"redaction": "none", "start": "2024-05-15", "end": "2024-05-15", **recipe}
        with open_sources(settings, read_recipe("tool_selection", recipe)) as sources:
            self.examples = list(tool_selection.examples(sources, read_recipe("tool_selection", recipe)))
            self.left_out = {reason: n for reason, n in sources.left_out.items() if n}
            self.notes, self.others = sources.notes, sources.others
        self.rows: list[Json] = [json.loads(example.row) for example in self.examples]

    def talk(self, place: int) -> list[str]:
        return [told(message) for message in self.rows[place]["messages"]]


def told(message: Json) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls", ())]
    return " ".join([message["role"], *([message["content"]] if message["content"] else []), *calls])


def names(tools: Sequence[Json]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]


def test_each_call_of_a_chat_is_an_example_of_what_was_said_before_it(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    agent.says("system", "Be kind.")
    ids = [agent.asks_and_calls("find", id="A1"), agent.asks_and_calls("refund", id="A1", amount=3)]
    ids.append(agent.asks_and_calls("find", id="A2"))
    made = Made(settings, store)
    assert made.talk(0) == ["system Be kind.", "user Please find.", "assistant find({'id': 'A1'})"]
    assert made.talk(1) == [
        *made.talk(0), "tool ok", "user Please refund.", "assistant refund({'id': 'A1', 'amount': 3})",
    ]  # fmt: skip
    assert [example.record_id for example in made.examples] == ids
    assert [(example.entity, example.label) for example in made.examples] == [
        ("s1", "find"), ("s1", "refund"), ("s1", "find"),
    ]  # fmt: skip
    assert list(made.rows[0]) == list(tool_selection.FEATURES)
    assert made.rows[0]["tool_name"] == "find"
    assert made.left_out == {}
    assert made.others == 0


def test_a_call_without_a_tool_execution_is_an_example_of_its_message(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    agent.says("user", "Find it.")
    event_id = agent.calls("find")
    made = Made(settings, store)
    assert [example.record_id for example in made.examples] == [event_id]
    assert made.others == 1
    assert Made(settings, store, where="tool_name = 'find'").examples == []


def test_tool_executions_are_the_calls_where_no_message_has_any(settings: Settings, store: TrainingDataStore) -> None:
    agent = Agent(store)
    agent.tells("agent_started", {"model": "m"})
    agent.tells("request_received", {"text": "What is 2+2?"})
    agent.tells("tool_chosen", {"tool": "calculate"})
    agent.tells("tool_response", {"text": "nobody said this"})
    agent.tells("error", {"message": "nor this"})
    agent.runs("calculate", {"expression": "2+2"}, {"result": 4})
    agent.runs("broken", {}, None, error="timeout")
    agent.runs("send", None)
    agent.tells("answer_given", "It is 4.")
    made = Made(settings, store)
    assert made.talk(2) == [
        "user What is 2+2?", "assistant calculate({'expression': '2+2'})", 'tool {"result":4}',
        "assistant broken({})", "tool error: timeout", "assistant send({})",
    ]  # fmt: skip
    assert made.rows[1]["messages"][-2]["name"] == "calculate"


def test_without_a_session_the_tasks_input_is_the_request_and_its_executions_the_calls(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store, session_id=None)
    for task in ("t1", "t2"):
        store.sync.store_agent_task(task, "a1", input_data={"request": f"Do {task}."}, timestamp=START)
        agent.runs("find", {"task": task}, task_id=task)
    made = Made(settings, store)
    assert [made.talk(place) for place in range(2)] == [
        [f"user Do {task}.", f"assistant find({{'task': '{task}'}})"] for task in ("t1", "t2")
    ]
    assert {example.entity for example in made.examples} == {"a1"}


def test_what_a_tool_gave_is_its_calls_answer_where_no_message_tells_it(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    agent.says("user", "Please send it.")
    agent.calls("find", of="it")
    agent.runs("find", {"of": "it"}, {"found": 1})
    agent.calls("send", to="me")
    agent.calls("look")  # before the sending came to its end
    agent.runs("send", {"to": "me"}, None, error="no address")
    agent.calls("close")
    made = Made(settings, store)
    found = ["user Please send it.", "assistant find({'of': 'it'})", 'tool {"found":1}']
    sent = ["assistant send({'to': 'me'})", "tool error: no address"]
    assert [made.talk(n) for n in range(4)] == [
        ["user Please send it.", "assistant find({'of': 'it'})"],
        [*found, "assistant send({'to': 'me'})"],
        [*found, "assistant look({})"],
        [*found, *sent, "assistant close({})"],
    ]


def test_sessions_do_not_see_each_other(settings: Settings, store: TrainingDataStore) -> None:
    for session in ("s1", "s2", "s3"):
        Agent(store, session).asks_and_calls("find", session=session)  # all at the same times
    made = Made(settings, store)
    assert [made.talk(place) for place in range(3)] == [
        ["user Please find.", f"assistant find({{'session': '{session}'}})"] for session in ("s1", "s2", "s3")
    ]


def test_a_corrected_call_takes_the_place_of_the_logged_one_and_the_talk_goes_on_as_it_did(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    wrong, right = agent.asks_and_calls("refund", amount=900), agent.asks_and_calls("find")
    better = {"name": "ask_a_person", "arguments": {"why": "too much"}}
    store.sync.store_feedback("record", wrong, "correction", corrected_output=better)
    made = Made(settings, store)
    assert made.talk(0)[-1] == "assistant ask_a_person({'why': 'too much'})"
    assert (made.examples[0].record_id, made.examples[0].label) == (wrong, "ask_a_person")
    assert made.talk(1)[1] == "assistant refund({'amount': 900})"
    assert names(made.rows[0]["tools"]) == ["ask_a_person", "find", "refund"]
    assert made.rows[0]["tools"][0]["function"]["parameters"]["required"] == ["why"]
    assert made.examples[1].record_id == right


def test_a_correction_that_is_no_call_leaves_the_call_out_and_says_so(
    settings: Settings, store: TrainingDataStore
) -> None:
    wrong = Agent(store).asks_and_calls("refund")
    store.sync.store_feedback("record", wrong, "correction", corrected_output="No refund after 30 days.")
    made = Made(settings, store)
    assert made.examples == []
    assert made.left_out == {tool_selection.NO_CALL: 1}


def test_a_predicate_and_lists_of_ids_choose_calls_but_not_their_history(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    first, second = agent.asks_and_calls("find"), agent.asks_and_calls("refund")
    for choice in ({"where": "tool_name = 'refund'"}, {"exclude": [first]}, {"include": [second]}):
        made = Made(settings, store, **choice)
        assert [example.record_id for example in made.examples] == [second]
        assert len(made.talk(0)) == 5
        assert made.left_out == {}  # what was not chosen is counted by the build


def test_calls_of_one_message_are_one_example_and_every_execution_is_accounted_for(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    agent.calls("find")  # nothing before it
    agent.runs("find", {})
    agent.says("tool", "ok", tool_call_id="x0")
    agent.says("user", "Both.")
    agent.calls("find", "weigh")
    both = agent.runs("find", {})
    agent.runs("weigh", {})
    agent.runs("stray", {})
    agent.says("user", "And?")
    agent.says("assistant", None, tool_calls=[{"id": "y", "function": {"name": "find", "arguments": "{broken"}}])
    agent.runs("find", {})
    agent.says("assistant", None, tool_calls=[{"id": "z", "function": {"name": "unknown", "arguments": "{}"}}])
    agent.runs("unknown", {})
    made = Made(settings, store)
    assert [example.record_id for example in made.examples] == [both]
    assert made.talk(0)[-1] == "assistant find({}) weigh({})"
    assert made.left_out == {
        tool_selection.SHORT: 1,
        tool_selection.TOGETHER: 1,
        tool_selection.STRAY: 1,
        tool_selection.NO_JSON: 1,
        tool_selection.UNNAMED: 1,
    }
    assert len(made.examples) + sum(made.left_out.values()) == 6


def test_parallel_calls_of_a_tool_have_their_own_answers_and_corrections_in_whatever_order_they_ended(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    agent.says("user", "Find them.")
    asked = ('{"q": "first", "n": 1}', '{"q": "second", "n": 1}', '{"q": "third", "n": 1}')
    agent.says("assistant", None, tool_calls=[
        {"id": f"x{n}", "type": "function", "function": {"name": "find", "arguments": arguments}}
        for n, arguments in enumerate(asked)
    ])  # fmt: skip
    agent.runs("find", {"n": 1, "q": "second"}, "RES-second")
    agent.runs("find", {"n": 1, "q": "third", "limit": 10}, "RES-third")  # the tool filled in what was not given
    first = agent.runs("find", {"n": 1, "q": "first"}, "RES-first")
    store.sync.store_feedback(
        "record", first, "fix", "bad", corrected_output={"name": "find", "arguments": {"q": "1st"}}
    )
    agent.calls("send")
    made = Made(settings, store)
    assert made.talk(1)[2:5] == ["tool RES-first", "tool RES-second", "tool RES-third"]
    assert [call["function"]["arguments"]["q"] for call in made.rows[0]["messages"][-1]["tool_calls"]] == [
        "1st", "second", "third",
    ]  # fmt: skip


def test_less_history_than_asked_for_is_left_out(settings: Settings, store: TrainingDataStore) -> None:
    agent = Agent(store)
    agent.says("system", "Be kind.")  # is no history
    agent.asks_and_calls()
    agent.asks_and_calls()
    made = Made(settings, store, minimum_history=2)
    assert len(made.examples) == 1
    assert made.left_out == {tool_selection.SHORT: 1}


def test_the_window_holds_the_last_messages_and_the_system_message(
    settings: Settings, store: TrainingDataStore
) -> None:
    agent = Agent(store)
    agent.says("system", "Be kind.")
    for _ in range(3):
        agent.asks_and_calls()
    assert Made(settings, store, window=3).talk(2) == [
        "system Be kind.", "assistant find({})", "tool ok", "user Please find.", "assistant find({})",
    ]  # fmt: skip
    assert Made(settings, store, window=2).talk(2) == [
        "system Be kind.", "user Please find.", "assistant find({})",
    ]  # fmt: skip


def test_tools_at_hand_are_those_that_the_session_recorded(settings: Settings, store: TrainingDataStore) -> None:
    schema = {"type": "object", "properties": {}}
    recorded = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": schema}}
    agent = Agent(store)
    agent.tells("run_started", {"tools": [recorded, "weigh"]})
    agent.asks_and_calls("find", q=1)
    agent.asks_and_calls("odd")
    made = Made(settings, store)
    assert names(made.rows[0]["tools"]) == ["find", "weigh"]
    assert made.rows[0]["tools"][0] == recorded
    assert names(made.rows[1]["tools"]) == ["find", "odd", "weigh"]
    assert made.notes["tool definitions"] == "1 recorded, 1 inferred from calls"


def test_tools_that_nobody_recorded_are_those_that_the_agent_called_in_the_range(
    settings: Settings, store: TrainingDataStore
) -> None:
    Agent(store, "s1", "a1").asks_and_calls("find", q="x")
    Agent(store, "s2", "a1").asks_and_calls("weigh")
    Agent(store, "s3", "a2").asks_and_calls("sing")
    made = Made(settings, store)
    assert [names(row["tools"]) for row in made.rows] == [["find", "weigh"], ["find", "weigh"], ["sing"]]
    assert made.rows[0]["tools"][0]["function"]["parameters"] == {
        "type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"],
    }  # fmt: skip


def test_drift_between_days_is_told(settings: Settings, store: TrainingDataStore) -> None:
    Agent(store, "s1").asks_and_calls("find", q="x")
    later = Agent(store, "s2")
    later._now += timedelta(days=1)
    later.asks_and_calls("find", q="x", limit=3)
    made = Made(settings, store, end="2024-05-16")
    assert made.notes["tool drift between days"] == "2024-05-16 find: limit added (integer)"


def test_by_agent_a_session_of_two_agents_is_two_conversations(settings: Settings, store: TrainingDataStore) -> None:
    Agent(store, "s1", "a1").asks_and_calls("find")
    Agent(store, "s1", "a2").asks_and_calls("weigh")
    made = Made(settings, store, entity="agent")
    assert [(example.entity, len(row["messages"])) for example, row in zip(made.examples, made.rows, strict=True)] == [
        ("a1", 2), ("a2", 2),
    ]  # fmt: skip
