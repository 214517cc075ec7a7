"""Options of `mortice serve` over a deployment document."""

import inspect

import pytest

from mortice.cli import serve_options
from mortice.cli.serve import serve
from mortice.cli.serve_options import FIELDS, override
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO

BASE = Deployment(
    model="smollm2",
    adapters={"poet": "/poet"},
    limits=EngineLimits(block_size=32, token_budget=256),
    cluster=ClusterSpec(slo=SLO(ttft_ms=500.0, tpot_ms=50.0)),
)


def test_every_field_has_an_option_of_its_name():
    assert FIELDS.keys() <= inspect.signature(serve).parameters.keys()


def test_every_option_is_taken():
    options = {name for name, value in vars(serve_options).items() if hasattr(value, "__metadata__")}
    taken = {p.annotation for p in inspect.signature(serve).parameters.values()}
    assert {name for name in options if getattr(serve_options, name) not in taken} == set()


def test_what_was_not_given_stays():
    assert override(BASE, dict.fromkeys(FIELDS) | {"adapter": []}) == BASE


def test_a_field_of_a_section_leaves_its_neighbours():
    chosen = override(BASE, {"token_budget": 64, "slo_tpot_ms": 80.0, "checksum": "full", "port": 1})
    assert (chosen.limits.block_size, chosen.limits.token_budget) == (32, 64)
    assert chosen.cluster is not None
    assert (chosen.cluster.slo.ttft_ms, chosen.cluster.slo.tpot_ms) == (500.0, 80.0)
    assert (chosen.transfer.checksum, chosen.transfer.mode) == ("full", "map")


def test_one_limit_on_a_document_without_a_cluster_keeps_the_default_of_the_other():
    default = ClusterSpec().slo
    chosen = override(Deployment(model="smollm2"), {"slo_ttft_ms": 123.0})
    assert chosen.cluster is not None
    assert (chosen.cluster.slo.ttft_ms, chosen.cluster.slo.tpot_ms) == (123.0, default.tpot_ms)


def test_adapters_are_added():
    assert override(BASE, {"adapter": ["sage=/sage"]}).adapters == {"poet": "/poet", "sage": "/sage"}
    with pytest.raises(RequestError, match="name=folder"):
        override(BASE, {"adapter": ["sage"]})


def test_a_draft_model_asks_for_drafts_by_it():
    chosen = override(BASE, {"draft_model": "small"}).speculation
    assert chosen is not None
    assert (chosen.method, chosen.draft_model) == ("draft", "small")
    ngram = override(BASE, {"max_draft": 2}).speculation
    assert ngram is not None
    assert (ngram.method, ngram.max_draft) == ("ngram", 2)


def test_a_value_that_a_field_does_not_take_is_named():
    with pytest.raises(RequestError, match="bfloat16") as refusal:
        override(BASE, {"dtype": "int7"})
    assert refusal.value.param == "dtype"
