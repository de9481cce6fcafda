"""distributed: how images are dealt out, and that processes agree on what went wrong."""

import json
from pathlib import Path

import pytest

from evaluation.distributed import Processes
from tests.conftest import torchrun

ROOT = Path(__file__).parents[1]


def test_batches_are_dealt_out_in_turn():
    # batches of 2 of the images 1 ... 7: (1 2) (3 4) (5 6) (7)
    shares = [Processes(3, rank).share(1, 8, batch_size=2) for rank in range(3)]
    assert shares == [[1, 2, 7], [3, 4], [5, 6]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("images", [0, 1, 7, 8])
def test_every_image_belongs_to_one_process(count, batch_size, images):
    shares = [Processes(count, rank).share(3, 3 + images, batch_size) for rank in range(count)]
    assert sorted(image for share in shares for image in share) == list(range(3, 3 + images))
    turns = -(-images // (batch_size * count))
    assert all(-(-len(share) // batch_size) <= turns for share in shares)


def test_torchruns_environment():
    assert Processes.from_environment({}) == Processes(1, 0, 0, 1)
    torchruns = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Processes.from_environment(torchruns) == Processes(4, 3, 1, 2)
    assert Processes.from_environment({"WORLD_SIZE": "4"}) == Processes(1, 0, 0, 1)  # somebody else's variable


def test_a_single_process_needs_no_connection():
    alone = Processes()
    assert list(alone.in_turn(iter([[1, 2], [3]]), 3, 2, (ValueError,))) == [[1, 2], [3]]
    assert alone.told_by_the_first(3) == 3
    assert alone.agreed(lambda: 5, (ValueError,)) == 5
    with pytest.raises(ValueError, match="no"):
        alone.agreed(lambda: int("no"), (ValueError,))


SCRIPT = """
import json, sys, torch
from pathlib import Path
from evaluation.distributed import OtherProcessError, Processes

images, batch_size, bad = map(int, sys.argv[2:])
processes = Processes.from_environment()
share = processes.share(0, images, batch_size)

def batches():
    for first in range(0, len(share), batch_size):
        records = [{"image": i, "rank": processes.rank} for i in share[first : first + batch_size]]
        if any(record["image"] == bad for record in records):
            raise ValueError(f"image {bad} is bad")
        yield records

def start():
    if bad == -2 and processes.rank == 1 or bad == -3:
        raise ValueError("nothing to start from")
    return "started"

report = {"records": []}
with processes.connected(torch.device("cpu")):
    try:
        report["start"] = processes.agreed(start, (ValueError,))
        report["told"] = processes.told_by_the_first(processes.rank + 10)
        for records in processes.in_turn(batches(), images, batch_size, (ValueError,)):
            report["records"] += records
    except (ValueError, OtherProcessError) as error:
        report["error"] = [type(error).__name__, str(error)]
Path(sys.argv[1], f"{processes.rank}.json").write_text(json.dumps(report))
"""


@pytest.mark.parametrize(
    ("images", "batch_size", "bad", "error", "given"),
    [
        (7, 2, -1, None, 7),
        (7, 2, 3, "image 3 is bad", 2),  # of the second process
        (7, 2, 5, "image 5 is bad", 4),  # of the first one, in its second turn
        (7, 2, -2, "nothing to start from", 0),  # in the second process
        (7, 2, -3, "nothing to start from", 0),  # in both: one says so
    ],
)
def test_two_processes_give_the_records_in_order_and_stop_together(tmp_path, images, batch_size, bad, error, given):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}")
    run = torchrun(2, script, tmp_path, images, batch_size, bad)
    assert run.returncode == 0, run.stderr
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for report in reports:
        assert [record["image"] for record in report["records"]] == list(range(given))
        assert all(record["rank"] == record["image"] // batch_size % 2 for record in report["records"])
        assert report.get("error", [None, None])[1] == error
    if error:
        assert sorted(report["error"][0] for report in reports) == ["OtherProcessError", "ValueError"]
    else:
        assert [(report["start"], report["told"]) for report in reports] == [("started", 10)] * 2
