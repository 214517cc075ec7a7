"""A snapshot is only for the back end, root file system and processor that made it."""

from pathlib import Path

import msgspec
import pytest

from mortice.sandbox import SandboxSpec, SnapshotRefused
from mortice.sandbox.home import Home
from mortice.sandbox.snapshots import Manifest, Snapshots, machine


@pytest.mark.parametrize(
    ("field", "what"),
    [("backend_version", "back end"), ("image_digest", "root file system"), ("machine", "machine")],
)
def test_one_from_elsewhere_is_refused_by_name(tmp_path: Path, field: str, what: str) -> None:
    manifest = Manifest(
        id="s1", box="b1", name="box", parent=None, epoch=None, backend="gvisor", backend_version="v1", machine=machine(),
        image_digest="i1", agent_digest="a1", spec=SandboxSpec(), files=(), created_at=0.0, audit_chain="b1", audit_seq=0,
        audit_head="h",
    )  # fmt: skip
    snapshots = Snapshots(Home(tmp_path))
    snapshots.check_origin(manifest, backend_version="v1", image_digest="i1")
    other = msgspec.structs.replace(manifest, **{field: "other"})
    with pytest.raises(SnapshotRefused, match=f"s1 is from another {what} \\(other; here "):
        snapshots.check_origin(other, backend_version="v1", image_digest="i1")
