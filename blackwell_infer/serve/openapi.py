"""/openapi.json: what the server takes and gives, as an OpenAPI 3.1 document. Bodies come from the structs that read
them; a field that is null is the same as one that is left out."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.serve import anthropic_request, openai_responses_request
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.openai_chat import IGNORED, ChatBody
from blackwell_infer.serve.openai_completions import CompletionBody, DetokenizeBody, TokenizeBody
from blackwell_infer.serve.openai_embeddings import EmbeddingBody

Schema = dict[str, Any]


class Endpoint(msgspec.Struct, frozen=True):
    """One method of one path: the struct of its body, names that its JSON answer always has, and `media`, the type of
    its answer if that is not JSON. `streams`: with "stream": true it answers with events."""

    method: Literal["get", "post", "delete"]
    path: str
    summary: str
    body: type[msgspec.Struct] | None = None
    answer: tuple[str, ...] = ()
    streams: bool = False
    media: str = ""


ENDPOINTS = (
    Endpoint("post", "/v1/chat/completions", "Answer messages", ChatBody, ("id", "object", "choices", "usage"), True),
    Endpoint("post", "/v1/completions", "Continue texts", CompletionBody, ("id", "object", "choices", "usage"), True),
    Endpoint("post", "/v1/embeddings", "Make vectors of texts", EmbeddingBody, ("object", "data", "model", "usage")),
    Endpoint("post", "/v1/responses", "Make a response", openai_responses_request.Body,
             ("id", "object", "status", "output"), True),
    Endpoint("get", "/v1/responses/{id}", "A stored response", None, ("id", "object", "status", "output")),
    Endpoint("get", "/v1/responses/{id}/input_items", "What a stored response answered", None, ("object", "data")),
    Endpoint("delete", "/v1/responses/{id}", "Forget a stored response", None, ("id", "deleted")),
    Endpoint("post", "/v1/messages", "Answer messages, as Anthropic's API", anthropic_request.Body,
             ("id", "type", "role", "content", "usage"), True),
    Endpoint("post", "/v1/messages/count_tokens", "Count the tokens of messages", anthropic_request.CountBody,
             ("input_tokens",)),
    Endpoint("get", "/v1/models", "The served model, in a list", None, ("object", "data")),
    Endpoint("get", "/v1/models/{name}", "The served model", None, ("id", "object", "created", "owned_by")),
    Endpoint("get", "/v1/engine", "The engine's counters as they are now", None, ("model", "running", "waiting")),
    Endpoint("post", "/tokenize", "Token ids of a text", TokenizeBody, ("tokens", "count", "max_model_len")),
    Endpoint("post", "/detokenize", "The text of token ids", DetokenizeBody, ("text",)),
    Endpoint("get", "/health", "Whether the process lives; needs no key", None, ("status",)),
    Endpoint("get", "/ready", "Whether requests are taken; needs no key", None, ("status",)),
    Endpoint("get", "/metrics", "Counters for Prometheus", media="text/plain"),
    Endpoint("get", "/openapi.json", "This document", None, ("openapi", "paths")),
)
PREFIXES = {"blackwell_infer.serve.anthropic_request": "Messages",
            "blackwell_infer.serve.openai_responses_request": "Responses"}
"""What the names of a module's structs begin with here: different APIs have structs of the same name"""
CLOSED = {"ChatBody": IGNORED, "CompletionBody": IGNORED, "EmbeddingBody": IGNORED, "TokenizeBody": frozenset[str](),
          "DetokenizeBody": frozenset[str]()}
"""Bodies in which a field of another name is refused, with those that may be there and mean nothing"""
REFUSALS = {400: "something in the request is wrong", 401: "no valid key", 403: "a page of another origin",
            404: "another model, or nothing there",
            405: "the path has other methods", 413: "the body is too large", 429: "too many requests wait",
            503: "the server is about to end", 504: "the answer took too long"}


def routes(host: Host) -> list[Route]:
    made = document(host)

    async def openapi(request: Request) -> Response:
        return JSONResponse(made)

    return [Route("/openapi.json", openapi)]


def document(host: Host) -> Schema:
    """The whole document. Keys are asked for if the server has any."""
    bodies, components = body_schemas([e.body for e in ENDPOINTS if e.body is not None])
    paths: dict[str, Schema] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = operation(endpoint, bodies)
    whole: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "blackwell_infer", "version": "1", "description": f"The model {host.name} over HTTP"},
        "paths": paths, "components": {"schemas": {**components, "Error": ERROR, "MessagesError": MESSAGES_ERROR}}}
    if host.config.api_key:
        whole["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
        whole["security"] = [{"bearer": []}, {"header": []}]
    return whole


def body_schemas(kinds: Sequence[type[msgspec.Struct]]) -> tuple[dict[type, Schema], Schema]:
    """References to the schemas of these structs, and the schemas of them and all they hold, by name."""
    references: dict[type, Schema] = {}
    components: Schema = {}
    for prefix in sorted({PREFIXES.get(kind.__module__, "") for kind in kinds}):
        own = [kind for kind in kinds if PREFIXES.get(kind.__module__, "") == prefix]
        found, named = msgspec.json.schema_components(own, ref_template=f"#/components/schemas/{prefix}{{name}}")
        references |= dict(zip(own, found, strict=True))
        components |= {prefix + name: schema for name, schema in named.items()}
    for (name, field), schema in BY_HAND.items():
        components[name]["properties"][field] = schema
    for name, more in CLOSED.items():
        components[name]["properties"] |= {field: {} for field in sorted(more)}
        components[name]["additionalProperties"] = False
    return references, components


def operation(endpoint: Endpoint, bodies: dict[type, Schema]) -> Schema:
    """One method of a path."""
    error = "MessagesError" if endpoint.path.startswith("/v1/messages") else "Error"
    refused = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}}
    answer: Schema = {"application/json": {"schema": {
        "type": "object", "required": list(endpoint.answer), "properties": {name: {} for name in endpoint.answer}}}}
    if endpoint.media:
        answer = {endpoint.media: {"schema": {"type": "string"}}}
    if endpoint.streams:
        answer["text/event-stream"] = {}
    made: Schema = {
        "summary": endpoint.summary, "operationId": operation_id(endpoint),
        "responses": {"200": {"description": endpoint.summary, "content": answer},
                      **{str(status): {"description": text, "content": refused} for status, text in REFUSALS.items()}}}
    if "{" in endpoint.path:
        name = endpoint.path.partition("{")[2].partition("}")[0]
        made["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if endpoint.body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": bodies[endpoint.body]}}}
    if endpoint.path in ("/health", "/ready"):
        made["security"] = []
    return made


def operation_id(endpoint: Endpoint) -> str:
    """A name for programs: the method and the words of the path."""
    words = "".join(c if c.isalnum() else " " for c in endpoint.path.removeprefix("/v1")).split()
    return "_".join((endpoint.method, *words))


TEXTS: Schema = {"anyOf": [
    {"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}},
    {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
    {"type": "array", "minItems": 1,
     "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}}]}
"""One text or several, as text or as token ids"""
SAID: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {
    "type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"},
                                                                   "text": {"type": "string"}}}}]}
MESSAGE: Schema = {"anyOf": [
    {"type": "object", "required": ["role", "content"], "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]}, "content": SAID}},
    {"type": "object", "required": ["role", "tool_calls"], "properties": {
        "role": {"const": "assistant"}, "content": {"anyOf": [SAID, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": {
            "type": "object", "required": ["id", "type", "function"], "properties": {
                "id": {"type": "string"}, "type": {"const": "function"}, "function": {
                    "type": "object", "required": ["name", "arguments"], "properties": {
                        "name": {"type": "string"}, "arguments": {"type": "string"}}}}}}}},
    {"type": "object", "required": ["role", "content", "tool_call_id"], "properties": {
        "role": {"const": "tool"}, "content": SAID, "tool_call_id": {"type": "string"}}}]}
BY_HAND = {("ChatBody", "messages"): {"type": "array", "minItems": 1, "items": MESSAGE},
           ("CompletionBody", "prompt"): TEXTS, ("EmbeddingBody", "input"): TEXTS}
"""Fields that are read by more than their structs"""
ERROR: Schema = {
    "type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"], "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]}}}}}
MESSAGES_ERROR: Schema = {
    "type": "object", "required": ["type", "error"], "properties": {"type": {"const": "error"}, "error": {
        "type": "object", "required": ["type", "message"], "properties": {
            "type": {"type": "string"}, "message": {"type": "string"}}}}}
