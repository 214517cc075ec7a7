"""The deployment document: what is written is read back, and a mistake is named."""

from pathlib import Path

import pytest

from mortice.specs.deployment import Deployment, Speculation, Transfer, dump_deployment, load_deployment
from mortice.specs.errors import RequestError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    deployment = Deployment(
        model="smollm2",
        prefill=2,
        decode=3,
        speculation=Speculation(method="ngram", max_draft=3),
        transfer=Transfer(mode="push", transport="tcp"),
        adapters={"a": "folder"},
    )
    path = tmp_path / "deployment.yaml"
    path.write_text(dump_deployment(deployment))
    assert load_deployment(path) == deployment


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: m\nprefil: 1\n", "prefil"),
        ("model: m\ndecode: 0\n", "decode"),
        ("model: m\nlimits: {block_size: 12}\n", "block_size"),
        ("model: m\ntransfer: {lease_s: 1}\n", "lease_s"),
        ("model: m\nadmission: {max_queued: 0}\n", "admission.max_queued must be more than 0"),
        ("model: m\nspeculation: {method: draft}\n", "draft_model"),
        ("model: m\nprefill: 99\n", "64 workers"),
        ("prefill: 1\n", "model"),
        ("model: m\ndtype: int3\n", "dtype: 'int3' is not one of float32, bfloat16, float16"),
        ("model: m\ncluster: {policy: luck}\n", "cluster.policy: 'luck' is not one of static, reactive"),
        ("model: m\ncluster: {max_gpus: 1}\n", "max_gpus"),
        ("model: m\ncluster: {min_prefill: 2}\n", "min_prefill and min_decode are more"),
        ("model: m\ncluster: {period_s: 0}\n", "period_s"),
        ("model: m\ncluster: {slo: {ttft_ms: -1}}\n", "ttft_ms"),
        ("model: m\ntransfer: {mode: pish}\n", "transfer.mode: 'pish' is not one of map, pull, push"),
        ("model: m\nspeculation: {method: luck}\n", "speculation.method: 'luck' is not one of"),
        ("model: [", "deployment.yaml"),
        ("", "deployment.yaml"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=named):
        load_deployment(path)
