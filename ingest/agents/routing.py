"""Turns a description of what somebody wants to keep into the place where it belongs, and the call that takes it there.

The decision is data: `PLACES` in the order in which they are asked for, each with what it is for, its call and the
words that speak for it. A description is cut into words; each place gets the weight of those that it knows, more for
phrases than for single words. The place with the most has it. Where no word is known, or two places are equally near,
the answer is `case_by_case`, with the questions that decide it.
"""

import re
from collections.abc import Mapping

import msgspec

_WORD = re.compile(r"[a-z0-9]+")
_MOST_WORDS = 500  # of a description; more says no more


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where things of one sort are kept."""

    name: str
    where: str  # the place, as a person would say it
    call: str  # how a thing gets there
    why: str
    phrases: tuple[str, ...]  # stems of words that speak for it; `a b` are two words in a row


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: one place, or the questions that have to be answered first."""

    place: str  # the name of a place, or `case_by_case`
    where: str
    call: str
    why: str
    matched: tuple[str, ...] = ()  # what in the description spoke for it
    candidates: tuple[str, ...] = ()  # case by case: the places that it might be
    questions: tuple[str, ...] = ()  # case by case: what to ask; the first "yes" decides


CASE_BY_CASE = "case_by_case"
PLACES: tuple[Place, ...] = (
    Place(
        name="secrets",
        where="a secret manager or the environment of the process; never a file of the store",
        call="TDS_* and your own variables, set where the process starts",
        why="whatever is stored here is read by many and kept for long",
        phrases=("api key", "password", "credential", "secret", "access token", "private key", "certificate"),
    ),
    Place(
        name="conversations",
        where="PostgreSQL (or SQLite), table agent_playground_messages",
        call="await messages.add_message(instance_id, role, content)",
        why="an agent reads it back at once to go on, in order, and it has to be there when the call returns",
        phrases=(
            "conversation", "chat history", "chat message", "message history", "dialogue", "playground message",
            "what the user said", "user said", "assistant repl", "message between", "transcript", "chat log",
        ),
    ),
    Place(
        name="prompts",
        where="a file under version control",
        call="a file configs/prompts/<name>.toml; Configs().prompt(name), of ingest.agents.configs",
        why="a person writes it, reviews it and rolls it back; what the agent did is read with the prompt it had",
        phrases=("prompt template", "system prompt", "prompt version", "prompt text", "few shot", "instruction text"),
    ),
    Place(
        name="configs",
        where="a file under version control",
        call="a file configs/agents/<agent_id>.toml; Configs().agent(agent_id).bind(store), of ingest.agents.configs",
        why="a person writes it, reviews it and rolls it back; what the agent did is read with the config it had",
        phrases=(
            "config", "configuration", "setting", "temperature", "which model an agent", "max tokens", "feature flag",
            "list of tools an agent", "tools an agent may", "allowed tools", "hyperparameter",
        ),
    ),
    Place(
        name="instances",
        where="memory of the process",
        call="with Instances(store).running(agent_id) as instance, of ingest.agents.instances",
        why="it is over when the process is, and a table of it would be wrong after each crash",
        phrases=(
            "instance", "heartbeat", "currently running", "is running now", "which agents are", "alive", "online",
            "current task of", "in progress right now", "presence", "who is working", "idle agent",
        ),
    ),
    Place(
        name="metrics",
        where="Prometheus (or InfluxDB)",
        call="Metrics().gauge(name, documentation).set(value), of ingest.agents.metrics",
        why="a number over time is looked at, summed up and alerted on; nobody trains on it",
        phrases=(
            "metric", "latency", "throughput", "cpu", "memory usage", "requests per", "per second", "per minute",
            "error rate", "gauge", "counter", "histogram", "dashboard", "p99", "percentile", "queue length",
            "queue depth", "uptime", "disk usage", "alert on", "time series", "how many requests", "token usage rate",
        ),
    ),
    Place(
        name="feedback",
        where="the training data store, kind feedback",
        call="await store.store_feedback(target_kind, target_id, name, value)",
        why="a judgement that comes later, and from which a model learns what was good",
        phrases=(
            "feedback", "rating", "thumbs", "reward", "label", "correction", "corrected", "better answer", "score of",
            "judge", "preference", "stars", "annotat", "human review", "was helpful", "satisf", "approved by",
            "rejected by",
        ),
    ),
    Place(
        name="tool_executions",
        where="the training data store, kind tool_executions",
        call="await store.store_tool_execution(execution_id, agent_id, task_id, tool_name, ...)",
        why="a call and what came of it: from it a model learns which tool to choose",
        phrases=(
            "tool", "tool call", "tool execution", "tool result", "function call", "called function", "sql query run",
            "api call made", "search result", "web search", "mcp", "called with", "command it ran", "code execution",
        ),
    ),
    Place(
        name="workflows",
        where="the training data store, kind workflows",
        call="await store.store_workflow_data(workflow_id, workflow_type, phase, ...)",
        why="a state and what came next: from it a model learns to steer",
        phrases=(
            "workflow", "pipeline step", "step result", "phase", "orchestrat", "state machine", "multi step", "handoff",
            "hand over between", "stage of", "dag", "plan of steps", "checkpoint",
        ),
    ),
    Place(
        name="tasks",
        where="the training data store, kind tasks",
        call="await store.store_agent_task(task_id, agent_id, ...)",
        why="a piece of work with its input and its outcome: from it a model learns what will succeed",
        phrases=(
            "task", "job", "retry", "retries", "ticket", "assignment", "work item", "input and output", "completed or",
            "timed out", "outcome of", "deadline",
        ),
    ),
    Place(
        name="events",
        where="the training data store, kind events",
        call="await store.store_agent_event(event_type, agent_id, ...)",
        why="something that happened, once and for good: from the order of events a model learns what comes next",
        phrases=(
            "event", "happened", "started", "stopped", "error raised", "exception", "warning", "decision", "decided",
            "action", "log line", "audit", "trace", "model call", "llm call", "llm response", "completion",
            "switched", "login", "noticed", "occurred", "reasoning", "thought",
        ),
    ),
)  # fmt: skip
# Asked in this order; the first yes decides.
QUESTIONS: Mapping[str, str] = {
    "secrets": "Could somebody misuse it who reads it? Then it is a secret.",
    "conversations": "Does the agent have to read it back, in order, to go on talking? Then it is a conversation.",
    "prompts": "Is it text that a person wrote for a model to follow? Then it is a prompt, in a file.",
    "configs": "Does a person decide it before the agent runs? Then it is configuration, in a file.",
    "instances": "Is it worthless once the process is gone? Then it is an instance's state, in memory.",
    "metrics": "Is it a number that you would sum up, plot or alert on? Then it is a metric.",
    "feedback": "Does it say how good something was that is stored already? Then it is feedback.",
    "tool_executions": "Is it a call of a tool with what came of it? Then it is a tool execution.",
    "workflows": "Is it the state of something that goes on in steps? Then it is workflow data.",
    "tasks": "Is it a piece of work with an outcome? Then it is a task.",
    "events": "Is it something that happened, at a time, and stays true? Then it is an event.",
    CASE_BY_CASE: "None of these: does somebody query it while agents run? Then it is your application's own database.",
}
# Names of the old tables and of the kinds, which are no descriptions but the thing itself.
ALIASES: Mapping[str, str] = {
    **{place.name: place.name for place in PLACES},
    **dict.fromkeys(("event", "agent_event", "agent_events"), "events"),
    **dict.fromkeys(("task", "agent_task", "agent_tasks", "task_executions"), "tasks"),
    **dict.fromkeys(("tool_execution", "tool_call", "tool_calls"), "tool_executions"),
    **dict.fromkeys(("workflow", "workflow_data", "workflow_executions"), "workflows"),
    **dict.fromkeys(("message", "messages", "agent_playground_messages", "agent_interactions"), "conversations"),
    **dict.fromkeys(("config", "agent_configs", "agent_config"), "configs"),
    **dict.fromkeys(("prompt", "prompt_templates", "prompt_template"), "prompts"),
    **dict.fromkeys(("instance", "agent_instances", "agent_instance"), "instances"),
    **dict.fromkeys(("metric", "agent_metrics", "agent_metric"), "metrics"),
}
_BY_NAME = {place.name: place for place in PLACES}


def place_named(name: str) -> Place | None:
    """The place of a kind, an old table or a place by its name, such as `agent_events`; None if it is none."""
    known = ALIASES.get("_".join(_WORD.findall(name.lower())))
    return None if known is None else _BY_NAME[known]


def route(description: str) -> Route:
    """Where something belongs: `route("the rating a user gave an answer").place` is `feedback`.

    A name of a kind or of an old table is taken as such. Never raises; what it cannot tell is `case_by_case`.
    """
    named = place_named(description)
    if named is not None:
        return _route_to(named, (description.strip(),))
    words = _WORD.findall(description.lower())[:_MOST_WORDS]
    found = {place.name: _matches(place, words) for place in PLACES}
    weights = {name: sum(_weight(phrase) for phrase in phrases) for name, phrases in found.items() if phrases}
    most = max(weights.values(), default=0)
    nearest = [name for name, weight in weights.items() if weight == most]
    if len(nearest) == 1:
        return _route_to(_BY_NAME[nearest[0]], found[nearest[0]])
    asked = nearest or list(_BY_NAME)
    return Route(
        place=CASE_BY_CASE,
        where="not decided yet",
        call="answer the questions, or describe it in other words",
        why="no word of it is known" if not nearest else f"it might be {' or '.join(nearest)}",
        matched=tuple(phrase for name in nearest for phrase in found[name]),
        candidates=tuple(nearest),
        questions=tuple(QUESTIONS[name] for name in [*asked, CASE_BY_CASE]),
    )


def _route_to(place: Place, matched: tuple[str, ...]) -> Route:
    return Route(place=place.name, where=place.where, call=place.call, why=place.why, matched=matched)


def _matches(place: Place, words: list[str]) -> tuple[str, ...]:
    """The phrases of a place that are in the description, each of its words the beginning of one there."""
    return tuple(phrase for phrase in place.phrases if _is_in(phrase.split(), words))


def _is_in(stems: list[str], words: list[str]) -> bool:
    last = len(words) - len(stems) + 1
    return any(all(words[n + k].startswith(stem) for k, stem in enumerate(stems)) for n in range(last))


def _weight(phrase: str) -> int:
    """A phrase of several words says more than as many single words."""
    return len(phrase.split()) ** 2 + 1
