import msgspec
import pytest

from mortice.bench.compare import compare, load_result
from mortice.bench.goodput import GoodputSearch, Probe
from mortice.bench.load import LoadRun
from mortice.bench.report import measure
from mortice.bench.timeline import Timeline
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO


def result(ttfts_s, *, num_failed=0, **more):
    timelines = [
        Timeline(0, 1, 2, ended_s=ttft + 0.1, chunk_s=[ttft, ttft + 0.1], chunk_chars=[1, 1], usage_tokens=2)
        for ttft in ttfts_s
    ]
    timelines += [Timeline(0, 1, 2, failure="refused")] * num_failed
    figures = measure(LoadRun(timelines, 0.0, 10.0, False), SLO(ttft_ms=1000), seed=0)
    return {"kind": "bench", "model": "m", "workload": {"seed": 0}, "void": False, **figures, **more}


def better(comparison):
    return {row["name"]: row["better"] for row in comparison["rows"]}


def test_one_point_apart_with_200_requests_is_tied():
    one = result([0.1 + i * 1e-3 for i in range(180)], num_failed=20)
    two = result([0.1 + i * 1e-3 for i in range(182)], num_failed=18)
    verdicts = better(compare(one, two))
    assert verdicts["slo attainment"] == "tied"
    assert verdicts["ttft_ms p90"] == "tied"
    assert verdicts["output_tokens_per_s"] is None


def test_a_clear_difference_names_the_better():
    one, two = result([0.1 + i * 1e-5 for i in range(100)]), result([0.5 + i * 1e-5 for i in range(100)])
    assert better(compare(one, two))["ttft_ms p50"] == "a"
    assert better(compare(two, one))["ttft_ms p50"] == "b"
    worse = result([0.1] * 40, num_failed=60)
    assert better(compare(worse, one))["slo attainment"] == "b"


def test_differences_of_the_set_up_are_said():
    comparison = compare(result([0.1]), result([0.1], model="n", void=True))
    assert "model differs: 'm' and 'n'" in comparison["notes"]
    assert any("B is void" in note for note in comparison["notes"])


def goodput(low, high):
    found = GoodputSearch(0.9, probes=[Probe(low, 99, 100, True), Probe(high, 10, 100, False)])
    return {"kind": "goodput", "model": "m", "goodput": found.document(1)}


def test_goodputs_tie_while_their_brackets_overlap():
    assert better(compare(goodput(3.0, 3.4), goodput(3.3, 3.6)))["sustained_rate"] == "tied"
    assert better(compare(goodput(3.0, 3.2), goodput(3.3, 3.6)))["sustained_rate"] == "b"


def test_kinds_do_not_mix():
    with pytest.raises(RequestError, match="cannot compare"):
        compare(result([0.1]), goodput(1.0, 2.0))


def test_results_survive_the_file(tmp_path):
    file = tmp_path / "r.json"
    file.write_bytes(msgspec.json.encode(result([0.1, 0.2])))
    loaded = load_result(file)
    assert better(compare(loaded, loaded))["ttft_ms p50"] == "tied"


@pytest.mark.parametrize("content", ["[]", "{", '{"kind": "other"}'])
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(RequestError) as raised:
        load_result(file)
    assert raised.value.param == "--compare"
