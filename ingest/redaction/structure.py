"""Turns a value's place in a document into whether it belongs to the structure: a role, a state, a tool's name.

Who speaks and what is called is read off such values, so a name that is told elsewhere is not taken out of them. The
keys are those of messages and tool calls as OpenAI, Anthropic, Google and LangChain write them, of OpenTelemetry's
attributes for generative models, of JSON Schema, and of the store's own columns.
"""

import re

from ingest.redaction.documents import Scalar, scalars

_WORD = re.compile(rb"[^\s]+")
_BETWEEN_WORDS = re.compile(r"[_\-. ]")
_KEYS = {
    "role", "type", "status", "eventtype", "severity", "priority", "level",
    "phase", "tasktype", "workflowtype", "toolcategory", "category", "kind", "targetkind",
    "source", "currentstep", "finishreason", "stopreason", "toolname", "functionname", "tool",
    "toolchoice", "genaitoolname", "genaioperationname", "enum", "const", "required", "model",
}  # fmt: skip
# Right below one of these, or beside one of those, `name` is a tool's; elsewhere it may be a person's.
_CALLS = {
    "function", "functions", "functioncall", "functionresponse", "functiondeclarations", "tool", "tools",
    "toolcall", "toolcalls", "tooluse",
}  # fmt: skip
_BESIDE_A_TOOLS_NAME = {"toolcallid", "tooluseid", "arguments", "parameters", "inputschema"}
_TOOLS = {
    ("role", b"tool"),
    ("role", b"function"),
    ("type", b"tool_use"),
    ("type", b"tool_call"),
    ("type", b"function"),
}


def is_structure(document: bytes, scalar: Scalar) -> bool:
    """Whether a value is a word of its document's structure; what has a blank in it never is."""
    if scalar.is_key or not scalar.path or _WORD.fullmatch(scalar.value) is None:
        return False
    key = _spelled(scalar.path[-1])
    if key != "name":
        return key in _KEYS
    parent = _spelled(scalar.path[-2]) if len(scalar.path) > 1 else ""
    return parent in _CALLS or _stands_beside_a_call(document, scalar)


def _stands_beside_a_call(document: bytes, scalar: Scalar) -> bool:
    """Whether the object that holds a value is a tool's: its definition, a call or an answer."""
    for other in scalars(document):
        if other.object_start == scalar.object_start:
            if other.is_key:
                if _spelled(other.value.decode(errors="replace")) in _BESIDE_A_TOOLS_NAME:
                    return True
            elif other.path and (other.path[-1], other.value) in _TOOLS:
                return True
    return False


def _spelled(key: str) -> str:
    return _BETWEEN_WORDS.sub("", key).lower()
