import pytest

from ingest.agents.routing import CASE_BY_CASE, PLACES, QUESTIONS, place_named, route

# What people want to keep, in their words → where it belongs.
DESCRIPTIONS = {
    "the agent started and which model it uses": "events",
    "an exception was raised in the middle of a run": "events",
    "a decision the agent made, with its reasoning": "events",
    "every LLM response": "events",
    "audit trail of what an agent did": "events",
    "the router switched to another model": "events",
    "a task with its input and output": "tasks",
    "how many retries a job took until it completed or failed": "tasks",
    "a ticket that was given to an agent, and its outcome": "tasks",
    "a work item that timed out": "tasks",
    "a tool call with its arguments and result": "tool_executions",
    "what the web search returned": "tool_executions",
    "which function was called with which parameters (function call)": "tool_executions",
    "the SQL query run by the database tool": "tool_executions",
    "MCP calls": "tool_executions",
    "the state of a workflow after each step": "workflows",
    "step results of a multi-step plan": "workflows",
    "handoffs between agents in an orchestration": "workflows",
    "the phase a state machine went into": "workflows",
    "thumbs up or down": "feedback",
    "the rating a user gave an answer": "feedback",
    "a reward for a finished episode": "feedback",
    "a person's corrected answer": "feedback",
    "labels from annotators": "feedback",
    "an LLM judge's score of a reply": "feedback",
    "conversation history": "conversations",
    "what the user said and what the assistant replied": "conversations",
    "chat messages of a playground instance": "conversations",
    "the transcript of a dialogue": "conversations",
    "the system prompt of an agent": "prompts",
    "prompt templates": "prompts",
    "an agent's configuration": "configs",
    "temperature and max tokens": "configs",
    "the list of tools an agent may use": "configs",
    "which agents are online, with their last heartbeat": "instances",
    "agent instances that are currently running": "instances",
    "p99 latency": "metrics",
    "requests per second and error rate": "metrics",
    "CPU and memory usage for a dashboard": "metrics",
    "the API key of a model provider": "secrets",
    "spreadsheet cells that a person edits": CASE_BY_CASE,
    "something": CASE_BY_CASE,
    "": CASE_BY_CASE,
}


@pytest.mark.parametrize(
    ("description", "place"), DESCRIPTIONS.items(), ids=[d[:40] or "nothing" for d in DESCRIPTIONS]
)
def test_what_somebody_describes_belongs_there(description: str, place: str) -> None:
    assert route(description).place == place


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("agent_events", "events"), ("agent_tasks", "tasks"), ("tool_executions", "tool_executions"),
        ("workflows", "workflows"), ("agent_interactions", "conversations"), ("agent_configs", "configs"),
        ("prompt_templates", "prompts"), ("agent_instances", "instances"), ("agent_metrics", "metrics"),
        (" Agent-Playground Messages ", "conversations"),
    ],
)  # fmt: skip
def test_an_old_tables_name_is_enough(name: str, place: str) -> None:
    found = place_named(name)
    assert found is not None
    assert found.name == route(name).place == place


def test_case_by_case_comes_with_the_questions_that_decide_it() -> None:
    found = route("spreadsheet cells that a person edits")
    assert found.questions == tuple(QUESTIONS.values())
    assert found.candidates == ()


def test_two_places_that_are_equally_near_are_named_and_asked_for() -> None:
    found = route("a task or a tool")
    assert (found.place, found.candidates) == (CASE_BY_CASE, ("tool_executions", "tasks"))
    assert found.questions == (QUESTIONS["tool_executions"], QUESTIONS["tasks"], QUESTIONS[CASE_BY_CASE])


def test_every_place_has_a_question_and_a_call() -> None:
    assert [*(place.name for place in PLACES), CASE_BY_CASE] == list(QUESTIONS)
    assert all(place.call and place.why and place.where for place in PLACES)


def test_a_very_long_description_is_answered() -> None:
    assert route("tool call " * 100_000).place == "tool_executions"
