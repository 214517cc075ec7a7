"""The table of request fields, the structs, the docs and the OpenAPI document say the same."""

from pathlib import Path

import pytest

from mortice.serve.fields import BY_ROUTE, ROUTES, TABLE, as_markdown
from mortice.serve.openapi import document

DOCS = Path(__file__).parents[2] / "docs"


def test_docs_are_generated_from_the_table():
    assert (DOCS / "api-fields.md").read_text() == as_markdown()


@pytest.mark.parametrize("route", ROUTES)
def test_structs_have_the_fields_of_the_table(route):
    taken = {field.name for field in BY_ROUTE[route].values() if field.status != "refused"}
    assert taken == set(ROUTES[route].__struct_fields__)


def test_each_field_of_a_route_has_one_row():
    rows = [(field.name, route) for field in TABLE for route in field.routes]
    assert len(rows) == len(set(rows))


def test_openapi_shows_every_field():
    schemas = document()["components"]["schemas"]
    for kind in ROUTES.values():
        schema = schemas[kind.__name__]
        assert set(schema["properties"]) == set(kind.__struct_fields__)
        assert schema["additionalProperties"] is False


def test_openapi_references_exist():
    text = str(document())
    for name in (part.split("'")[0] for part in text.split("#/components/schemas/")[1:]):
        assert name in document()["components"]["schemas"]
