"""The table of metrics: documented, stable, and rendered as it says."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mortice.obs.metric_table import BY_NAME, TABLE, counter_key
from mortice.obs.metrics import PREFIX, Metrics, as_markdown, worker_families
from mortice.specs.messages import WorkerStats

DOCS = Path(__file__).parents[2] / "docs"


def test_docs_are_generated_from_the_table():
    assert (DOCS / "metrics.md").read_text() == as_markdown()


def test_names_are_well_formed():
    assert len(BY_NAME) == len(TABLE)
    for metric in TABLE:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name


def test_rendered_families_are_those_of_the_table():
    metrics = Metrics("m")
    stats = WorkerStats(
        worker_id="decode-0",
        state="running",
        num_running=3,
        num_free_blocks=30,
        num_blocks=40,
        counters={
            "num_preemptions": 2.0,
            "spec_proposed": 4.0,
            "prompt_tokens": 5.0,
            counter_key("step_host_seconds_total", "plan"): 0.5,
            "unknown": 1.0,
        },
    )

    class Workers:
        def collect(self):
            return worker_families("m", [("decode", True, stats)])

    metrics.watch_workers(Workers())
    metrics.add("request_success_total", 1, "stop")
    metrics.observe("time_to_first_token_seconds", 0.02)
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    assert set(families) == {PREFIX + m.name.removesuffix("_total") for m in TABLE}

    def value(name, **labels):
        base = {"model_name": "m", "worker": "decode-0", "role": "decode", **labels}
        family = families[PREFIX + name.removesuffix("_total")]
        return [s.value for s in family.samples if s.labels == base and not s.name.endswith("_created")]

    assert value("num_requests_running") == [3]
    assert value("kv_cache_usage_perc") == [0.25]
    assert value("num_preemptions_total") == [2]
    assert value("step_host_seconds_total", stage="plan") == [0.5]
    assert value("spec_decode_num_draft_tokens_total") == [4]
    assert value("iteration_tokens_total") == [5]
    assert value("engine_sleep_state", state="running") == [1]


def test_scraping_twice_gives_the_same_names():
    metrics = Metrics("m")
    assert metrics.render() == metrics.render()
