"""The OpenAPI document is whole: what it names is there, and its examples are requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from crossroads.serving.api_error import ApiError, invalid_request
from crossroads.serving.openapi import document
from crossroads.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    parse_chat,
    parse_completion,
)
from crossroads.serving.reply_schemas import Error, TracedToken

DOCUMENT = document("1.2.3", "http://127.0.0.1:8000")
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    f"{method} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}


def walk(value: Any) -> Iterator[Any]:
    yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from walk(child)


def resolve(reference: str) -> Any:
    start, *steps = reference.split("/")
    assert start == "#"
    value: Any = DOCUMENT
    for step in steps:
        value = value[step]
    return value


REFERENCES = {v["$ref"] for v in walk(DOCUMENT) if isinstance(v, dict) and "$ref" in v}


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    for reference in REFERENCES:
        assert isinstance(resolve(reference), dict)
    for kind in ("schemas", "responses"):
        for name in DOCUMENT["components"][kind]:
            assert f"#/components/{kind}/{name}" in REFERENCES


def test_it_is_plain_json_and_a_new_value_each_time() -> None:
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    again = document("1.2.3", "http://127.0.0.1:8000")
    again["paths"].clear()
    assert DOCUMENT["paths"]


def test_it_tells_version_and_address() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert DOCUMENT["servers"] == [{"url": "http://127.0.0.1:8000"}]


def test_every_endpoint_is_there() -> None:
    assert set(OPERATIONS) == {
        "post /v1/chat/completions",
        "post /v1/completions",
        "get /v1/models",
        "get /v1/models/{model}",
        "get /v1/routing",
        "get /health",
        "get /metrics",
        "get /openapi.json",
    }
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_tells_success_and_errors(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    responses = operation["responses"]
    assert responses["200"]["content"]
    errors = {status for status in responses if status != "200"}
    assert {"405", "421", "500"} <= errors
    assert ("401" in errors) == (operation.get("security") != [])
    if name.startswith("post"):
        assert {"400", "403", "404", "413", "415", "429", "503", "504"} <= errors
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    for status in errors:
        response = resolve(responses[status]["$ref"])
        assert response["description"]
        schema = response["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Error"}


def test_parameters_of_a_path_are_described() -> None:
    for path, item in DOCUMENT["paths"].items():
        named = {p["name"] for p in item.get("parameters", []) if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))


def test_the_security_scheme_that_is_asked_for_is_described() -> None:
    asked = {name for option in DOCUMENT["security"] for name in option}
    assert asked == set(DOCUMENT["components"]["securitySchemes"])
    assert DOCUMENT["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.parametrize(
    ("path", "parse"),
    [("/v1/chat/completions", parse_chat), ("/v1/completions", parse_completion)],
)
def test_examples_are_requests(path: str, parse: Any) -> None:
    examples = OPERATIONS[f"post {path}"]["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for example in examples.values():
        assert parse(json.dumps(example["value"]).encode()).model == example["value"]["model"]


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest])
def test_request_schemas_name_the_fields_on_the_wire(model: Any) -> None:
    schema = SCHEMAS[model.__name__]
    fields = {field.alias or name for name, field in model.model_fields.items()}
    assert set(schema["properties"]) == fields
    assert schema["additionalProperties"] is False
    assert "given_messages" not in json.dumps(DOCUMENT)
    for name in ("model", "messages" if model is ChatRequest else "prompt"):
        assert name in schema["required"]


def test_ranges_in_the_document_are_those_that_are_kept() -> None:
    body = {"model": "mixed", "prompt": "x"}
    checked = 0
    for name, schema in SCHEMAS["CompletionRequest"]["properties"].items():
        for kind in (schema, *schema.get("anyOf", [])):
            for bound, step in (("minimum", -1), ("maximum", 1)):
                if bound in kind:
                    checked += 1
                    value = body | {name: kind[bound] + step}
                    with pytest.raises(ApiError, match=f"^{name} must be"):
                        parse_completion(json.dumps(value).encode())
    assert checked > 10


def test_an_error_has_the_shape_that_is_described() -> None:
    body = invalid_request("n must be >= 1, got 0", "n").body()
    assert Error.model_validate(body).model_dump() == body


def test_a_traced_token_has_the_shape_of_the_guide() -> None:
    token = {
        "position": 0, "token_id": 785, "text": "The", "writer": "small", "score": 0.0031,
        "entropy": 0.41, "proposed": {"id": 785, "text": "The"},
        "proposals": [{"id": 785, "text": "The", "probability": 0.83}],
        "lag": 0, "cause": None, "discarded": 0, "seconds": 0.21,
    }  # fmt: skip
    told = TracedToken.model_validate(token).model_dump(exclude_unset=True, mode="json")
    assert told == token
    assert set(SCHEMAS["TracedToken"]["required"]) == set(token)
