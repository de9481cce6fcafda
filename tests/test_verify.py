"""experiments.verify: a run that agrees with itself and the paper, and every way in which one may not."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import options
from calculate_error import NYU
from clip.checkpoint import CHECKPOINTS
from datasets.nyu import TEST_INDICES
from datasets.prepare_nyu import MAT_SHA256
from experiments import __main__ as experiments
from experiments import settings, statistics, tables, verify
from experiments.published import BEST, COLUMNS, PUBLISHED, THIS_RUN, UNIFORM
from experiments.score import RANDOM_KINDS, RandomDepth
from experiments.settings import assignments
from experiments.statistics import COUNTS, PRIMARY, Results
from monoclip import PAPER
from tests.conftest import METRICS, QUICKGELU
from tests.test_eval import SOFT

SCENES = {"bathroom": 58, "classroom": 23}  # images of the official split; the others are of no scene that is published
RANDOM = RandomDepth(RANDOM_KINDS[0], 0).name
BINS = (1.0, 1.0, 2.123456789)
ROWS = [row for row in PUBLISHED if row.data_set == "NYU"]
READINGS = {row.reading: THIS_RUN if row.reading == PAPER else row.name for row in ROWS if row.reading}


def published_run(folder: Path, off: float = 0.0, count: int = 654, sha: str = CHECKPOINTS["RN50"].sha256) -> Path:
    """Writes a run of the official split whose means are the published ones; prompt 2's abs_rel is `off` by so much."""
    scenes = [scene for scene, images in SCENES.items() for _ in range(images)]
    scenes = np.array(scenes + ["=kitchen"] * (654 - len(scenes)))  # which a CSV has as '=kitchen
    rows, noise = [*READINGS.values(), RANDOM, UNIFORM], np.random.default_rng(0).normal(0, 0.02, 654)
    for scene in np.unique(scenes):
        noise[scenes == scene] -= noise[scenes == scene].mean()
    values = np.full((654, len(METRICS), len(rows)), 0.5) + noise[:, None, None]
    for place, name in enumerate(READINGS.values()):
        for column in COLUMNS:
            published = {row.scene: row.by_column()[column] for row in ROWS if READINGS.get(row.reading) == name}
            rest = 654 * published[None] - sum(SCENES[scene] * published.get(scene, 0) for scene in SCENES)
            mean = np.full(654, rest / (654 - sum(SCENES.values())) if len(published) > 1 else published[None])
            for scene in SCENES if len(published) > 1 else ():
                mean[scenes == scene] = published[scene]
            values[:, METRICS.index(column), place] = mean + noise
    values[:, METRICS.index("abs_rel"), rows.index("prompt 2")] += off
    errors = [
        dict(zip(METRICS, image, strict=True)) | {key: np.full(len(rows), 100) for key in COUNTS}
        for image in values[:count]
    ]
    names = [f"{scene}/rgb_{index:05d}.jpg" for scene, index in zip(scenes, TEST_INDICES, strict=True)]
    clusters, baselines = [f"{i // 3}" for i in range(count)], dict.fromkeys(READINGS.values(), UNIFORM)
    results = Results(names[:count], scenes[:count], clusters, TEST_INDICES[:count], rows, errors, baselines)
    results.add_best_constant(BEST, {"rmse": np.array([[0.7] * count, [0.8] * count])})
    permuted = np.array([[0.4, 0.3], [0.3, 0.4], [0.5, 0.2]])
    by = {row: READINGS[row.reading] for row in ROWS if row.reading}
    caveats = [note for note in (NYU.whole_split * (count < 654), options.toy_note(sha)) if note]
    scored = tables.Scored(
        results, {"random": [RANDOM]}, by, [RANDOM], count == 654, "T", "", caveats, "captures", permuted
    )
    folder.mkdir(parents=True)
    (folder / "per_image.csv").write_text(tables.as_csv(results, options.csv_text))
    (folder / "permutations.csv").write_text(tables.permuted_csv(assignments(BINS)[0], permuted))
    about = {"data": "654 images", "warnings": caveats, "made_with": {"checkpoint": "a.pt", "checkpoint_sha256": sha}}
    about["made_with"]["reading"] = {"bin_list": list(BINS)}
    about["readings"] = {name: asdict(reading) for reading, name in READINGS.items()}
    options.write_json(folder / "results.json", options.identified(NYU) | tables.as_json(scored) | about)
    return folder / "results.json"


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 200)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return published_run(tmp_path_factory.mktemp("runs") / "exact")


def test_a_run_that_gives_the_papers_numbers(run, tmp_path, capsys):
    assert verify.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "weights: a.pt: OpenAI's RN50, by SHA-256\n" in out
    assert "data: 654 images: the official test split, whole, by index\n" in out
    assert out.endswith("OK: 20 published rows are within 0.005\n")
    done, of = out.split("from the CSVs: ")[1].split(" values")[0].split(" of ")
    assert done == of
    assert int(of.replace(",", "")) > 1000
    lines = [line for line in out.splitlines() if line.startswith(("within", "OUTSIDE", "-  "))]
    assert len(lines) == len(ROWS)
    assert sum(line.startswith("within") for line in lines) == sum(row.reading is not None for row in ROWS)
    assert next(line for line in lines if "Lower Bound" in line).startswith(
        f"OUTSIDE  Table 1: methods, Lower Bound ({RANDOM}; nothing to reproduce exactly): ours 0.500"
    )
    line = next(line for line in lines if "bathroom, class-dependent 3" in line)
    assert "ours 0.425 0.723 0.893 0.373 0.141 0.745; published 0.425 0.723 0.893 0.373 0.141 0.745" in line
    assert line.endswith("in 6 of 6 intervals")


def test_the_data_of_the_paper_are_known_by_their_hash(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "other.mat").write_bytes(b"other")
    assert verify.main([str(run), "--data_path", str(tmp_path / "other.mat")]) == 1
    assert "other.mat is not nyu_depth_v2_labeled.mat as published, by SHA-256" in capsys.readouterr().err
    monkeypatch.setattr(verify, "file_sha256", lambda path: MAT_SHA256)
    assert verify.main([str(run), "--data_path", str(tmp_path / "other.mat")]) == 0
    assert verify.main([str(run), "--data_path", str(tmp_path / "none.mat")]) == 2
    assert "none.mat: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("off", "code"), [(0.0049, 0), (-0.0049, 0), (0.0051, 1), (-0.02, 1)])
def test_five_thousandths_are_the_limit(tmp_path, capsys, off, code):
    assert verify.main([str(published_run(tmp_path / "run", off))]) == code
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if "prompt 2" in line)
    assert line.startswith("OUTSIDE" if code else "within")
    assert f"at most {off:+.3f} off (abs_rel)" in line
    assert ("results.json: 1 published rows are outside 0.005" in err) == bool(code)
    inside = 6 if abs(off) < 0.0015 else 5  # the interval is about .0015 wide on each side
    assert line.endswith(f"in {inside} of 6 intervals")


def test_other_images_are_not_compared(tmp_path, capsys):
    assert verify.main([str(published_run(tmp_path / "run", count=653, sha="0" * 64))]) == 0
    out = capsys.readouterr().out
    assert "not known here, SHA-256 000" in out
    assert "no official test split, or not all of it, by index" in out
    assert "within" not in out
    measured = sum(row.reading is not None for row in ROWS) + 1  # and the Lower Bound
    assert out.count("not compared, over other images") == measured


def altered(run: Path, folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of a run in which one file has `new` for the first `old`."""
    folder.mkdir()
    for file in run.parent.iterdir():
        text = file.read_text()
        if file.name == name:
            assert old in text
            text = text.replace(old, new, 1)
        (folder / file.name).write_text(text)
    return folder / "results.json"


def test_a_number_that_does_not_follow_is_named(run, tmp_path, capsys):
    stored = json.loads(run.read_text())
    mean = stored["rows"]["prompt 1"]["metrics"]["rmse"]
    low = stored["question"]["primary"][0]["interval_95"][0]
    cases = [
        ("results.json", f'"rmse": {mean!r}', '"rmse": 1.5', "rows, prompt 1, metrics, rmse: 1.5, but 1.27"),
        ("results.json", f"{low!r}", f"{low - 0.001!r}", "question, primary, 0, interval_95, 0: "),
        ("results.json", '"wins": ', '"wins": 1', "question, primary, 0, wins: "),
        ("results.json", '"=kitchen": {', '"=cellar": {', "scenes: not of the same form"),
        ("per_image.csv", ",100,100,0.", ",100,100,1.", "but "),
        ("permutations.csv", "0.3,0.4", "0.5,0.4", "question, primary, 0, p: "),
        ("results.json", '"all_assignments": true', '"all_assignments": false', "question, all_assignments: "),
    ]
    for i, (name, old, new, message) in enumerate(cases):
        assert verify.main([str(altered(run, tmp_path / str(i), name, old, new))]) == 1
        out, err = capsys.readouterr()
        assert message in out
        assert "values do not follow from the CSVs" in err


@pytest.mark.parametrize(
    ("column", "new", "message"),
    [(1, "den", "name different ones"), (3, "7", "name different ones"), (8, "nan", "that are no numbers")],
)
def test_lines_of_a_csv_that_cannot_be_right_are_refused(run, tmp_path, capsys, column, new, message):
    old = (run.parent / "per_image.csv").read_text().split("\n")[2]
    cells = old.split(",")
    cells[column] = new
    assert verify.main([str(altered(run, tmp_path / "run", "per_image.csv", old, ",".join(cells)))]) == 2
    assert message in capsys.readouterr().err


def test_an_assignment_without_a_number_is_refused(run, tmp_path, capsys):
    assert verify.main([str(altered(run, tmp_path / "run", "permutations.csv", ",0.3,", ",nan,"))]) == 2
    assert "not the assignments of this run's bins" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["made_with", "commit", "checkpoint_sha256"])
def test_a_results_json_that_does_not_say_what_made_it_is_damaged(run, tmp_path, capsys, key):
    assert verify.main([str(altered(run, tmp_path / "run", "results.json", f'"{key}"', '"other"'))]) == 2
    assert f"damaged, or not of the CSVs beside it (KeyError('{key}'))" in capsys.readouterr().err


def test_images_with_a_name_of_their_own_are_not_the_papers_whatever_their_indices(run, tmp_path, capsys):
    warned = f'"warnings": ["{NYU.whole_split}"]'
    assert verify.main([str(altered(run, tmp_path / "run", "results.json", '"warnings": []', warned))]) == 0
    assert capsys.readouterr().out.endswith("OK, but no published row is judged\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{", "no JSON"),
        ("results.json", '{"schema": 1}', "no results.json of schema 3; run python -m experiments again"),
        ("results.json", '{"schema": 3, "question": {}}', "damaged, or not of the CSVs beside it (KeyError('rows'))"),
        ("results.json", None, "results.json: cannot be read (No such file or directory)"),
        ("per_image.csv", "image,reading\n", "its rows are not those of results.json"),
        (
            "results.json",
            '{"schema": 3}',
            "of eval.py or of --readouts; give the results.json of python -m experiments",
        ),
        ("per_image.csv", None, "per_image.csv: no such file; keep it beside results.json"),
        ("permutations.csv", "bins,delta1\n1,x\n", "damaged, or not of the CSVs beside it"),
        ("permutations.csv", "bins,delta1,abs_rel\n1.0 1.0 2.0,.4,.3\n", "not the assignments of this run's bins"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(run, tmp_path, capsys, name, text, message):
    path = altered(run, tmp_path / "run", "", "", "")
    (path.parent / name).unlink()
    if text is not None:
        (path.parent / name).write_text(text)
    assert verify.main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("experiments.verify: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_run_of_the_experiments_agrees_with_itself(nyu_folder, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    own = [{"name": "=1+1|\x7f", "depth_classes": ["near", "far"], "bin_list": [1, 3], "temperature": 2}]
    (tmp_path / "own.json").write_text(json.dumps(own).replace("\\u007f", "é"))
    flags = ["--data_path", nyu_folder(12), "--clip_path", tiny_checkpoint, "--output", tmp_path / "out", *SOFT]
    flags += ["--readings", tmp_path / "own.json", "--controls", "--device", "cpu", *QUICKGELU]
    for name in ("PERMUTATIONS", "SHUFFLES", "CHANNEL_SUBSETS", "RANDOM_SEEDS"):
        monkeypatch.setattr(settings, name, 2)
    for module in (experiments, settings, verify):
        monkeypatch.setattr(module, "assignments", lambda bins: ([bins, bins[::-1]], False))
    assert experiments.main(list(map(str, flags))) == 0
    capsys.readouterr()
    assert verify.main([str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith("OK, but no published row is judged\n")
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["question"]["other_assignments"] == 1
    assert [contrast["metric"] for contrast in stored["question"]["primary"]] == list(PRIMARY)
    assert stored["question"]["primary"][0]["interval_95"] is not None
