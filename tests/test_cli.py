"""The commands end to end on the embedded model, and what each wrong input looks like to the person who typed it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models.tiny_models import save_tiny, texts

from sparsight.cli import main
from sparsight.dictionaries import TopK
from sparsight.formats import load_dictionary
from sparsight.models import Site


def run(*arguments: object) -> int:
    """Exit code of `sparsight ARGUMENTS`, in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 12,000 organism activations and one small TopK dictionary, both made by the commands."""
    folder = tmp_path_factory.mktemp("cli")
    harvest = ("harvest", "--dataset", "organism", "--site", "2.resid_post", "--tokens", 12_000, "--quiet")
    assert run(*harvest, "--out", folder / "store") == 0
    train = ("train", "--activations", folder / "store", "--latents", 256, "--k", 8, "--tokens", 40_000, "--quiet")
    assert run(*train, "--out", folder / "dictionaries") == 0
    return folder


@pytest.fixture(scope="module")
def dictionary(folder: Path) -> Path:
    (found,) = (folder / "dictionaries").glob("*/dictionary.json")
    return found.parent


def test_evaluate_prints_one_json_object_with_the_headline_numbers(folder, dictionary, capsys):
    assert run("evaluate", dictionary, "--activations", folder / "store", "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["fvu"]["value"] < 1
    assert 0 < result["l0"]["mean"]["value"] <= 8


def test_compare_orders_pursuit_below_refit_below_encoder(folder, dictionary, capsys):
    arguments = ("compare", dictionary, "--activations", folder / "store", "--k", 4, "--no-model", "--json", "--quiet")
    assert run(*arguments) == 0
    fvu = {arm["arm"]: arm["fvu"]["value"] for arm in json.loads(capsys.readouterr().out)["arms"]}
    assert fvu["pursuit"] < fvu["refit"] < fvu["encoder"]


@pytest.mark.slow
def test_evaluate_trains_the_noise_floor_it_is_asked_for(folder, dictionary, capsys):
    arguments = ("evaluate", dictionary, "--activations", folder / "store", "--random-model-tokens", 2000)
    suite = ("--suite", "absorption", "--suite-examples", 16)
    assert run(*arguments, *suite, "--baseline-tokens", 1024, "--gap-tokens", 0, "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    ((name, found),) = result["evaluations"].items()
    assert [row["baseline"] for row in found["baselines"]][-2:] == ["same recipe", "random model"]
    floors = [score["floors"] for b in result["suites"][name]["benchmarks"] for score in b["scores"] if score["value"]]
    assert floors
    assert {"random model", "same recipe"} <= set(floors[0])


def test_features_are_reported_with_the_latents_that_recover_them(folder, dictionary, tmp_path, capsys):
    arguments = ("features", "--activations", folder / "store", "--dictionary", dictionary)
    only = ("--feature", "is_number", "--no-model")
    assert run(*arguments, *only, "--out", tmp_path / "found", "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in result["features"]] == ["is_number"]
    assert {s["feature"] for s in result["latent_sets"]} == {"is_number"}
    assert result["representations"][0]["represented"]
    assert any(link["measure"] == "AUROC" and link["value"] > 0.6 for link in result["links"])
    assert json.loads((tmp_path / "found" / "features.json").read_text())["seed"] == 0
    assert "<svg" in (tmp_path / "found" / "features.html").read_text()
    assert "is_number" in (tmp_path / "found" / "features.txt").read_text()


def test_features_of_an_unknown_name_or_site_are_refused(folder, capsys):
    assert run("features", "--activations", folder / "store", "--feature", "colour", "--quiet") == 1
    assert "has no feature 'colour'" in capsys.readouterr().err
    assert run("features", "--activations", folder / "store", "--site", "9.resid_post", "--quiet") == 1
    assert "expected 9.resid_post" in capsys.readouterr().err


def strayed(dictionary, tmp_path, **where):
    """A copy of the dictionary that says it was made elsewhere."""
    made = load_dictionary(dictionary)
    for name, value in where.items():
        setattr(made, name, value)
    made.save(tmp_path / "strayed")
    return tmp_path / "strayed"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"site": Site(1, "resid_post")}, "the store holds 2.resid_post, expected 1.resid_post"),
        ({"model": "other"}, "was made for model other, got activations of organism; force to go on"),
    ],
)
def test_a_dictionary_made_elsewhere_is_measured_by_force_alone(folder, dictionary, tmp_path, capsys, where, reason):
    copy = strayed(dictionary, tmp_path, **where)
    measure = ("evaluate", copy, "--no-model", "--baseline-tokens", 0, "--gap-tokens", 0)
    report = ("features", "--dictionary", copy, "--feature", "is_number", "--no-model")
    for command in (measure, report):
        call = (*command, "--activations", folder / "store", "--json", "--quiet")
        code, line = refusal(capsys, *call)
        assert (code, reason in line) == (1, True)
        assert run(*call, "--force") == 0
        capsys.readouterr()


def test_labels_that_do_not_fit_the_tokens_are_refused(folder, tmp_path, capsys):
    file = tmp_path / "labels.json"
    call = ("features", "--activations", folder / "store", "--labels", file, "--no-model", "--quiet")
    for entry, reason in (
        ({"classes": ["no", "yes"], "rows": [0, 1, 1]}, "labels of odd are misaligned: expected one for each of the"),
        ({"classes": ["no", "yes"], "documents": {"999999": "yes"}}, "none of its 1 documents is in the store"),
        ({"classes": ["no", "yes"], "documents": {"0": "yes"}}, "odd has 0 classes with examples on every side"),
    ):
        file.write_text(json.dumps({"odd": entry}))
        code, line = refusal(capsys, *call)
        assert code == 1
        assert reason in line


def test_one_document_leaves_no_interval_and_no_report_of_features(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("the nurse said that she works . " * 40)
    harvest = ("harvest", "--text", tmp_path / "one.txt", "--site", "embed", "--tokens", 200, "--out", tmp_path / "s")
    assert run(*harvest, "--quiet") == 0
    capsys.readouterr()
    made = TopK(16, 2).build(128, torch.Generator().manual_seed(3))
    made.site, made.model = Site(None, "embed"), "organism"
    made.save(tmp_path / "d")
    call = ("evaluate", tmp_path / "d", "--activations", tmp_path / "s", "--split", "all", "--no-model", "--json")
    assert run(*call, "--baseline-tokens", 0, "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["fvu"]["low"], result["fvu"]["high"]) == (None, None)
    assert any("interval" in note for note in result["notes"])
    (tmp_path / "l.json").write_text(json.dumps({"odd": {"classes": ["a", "b"], "documents": {"0": "a"}}}))
    code, line = refusal(
        capsys, "features", "--activations", tmp_path / "s", "--labels", tmp_path / "l.json", "--no-model", "--quiet"
    )
    assert code == 1
    assert "got 1 in all" in line


def test_help_of_every_command_shows_an_example(capsys):
    for command in ("doctor", "demo", "harvest", "train", "evaluate", "compare"):
        assert run(command, "--help") == 0
        assert f"sparsight {command}" in capsys.readouterr().out.split("Example:")[1]


def test_doctor_finds_the_embedded_model_working(capsys):
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["embedded model"] == "works"


HARVEST = ("harvest", "--dataset", "organism", "--site", "2.resid_post", "--tokens", 500, "--quiet")
TRAIN = ("train", "--latents", 64, "--k", 4, "--tokens", 4_000, "--quiet")


def refusal(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and the one line on stderr of a command that must fail."""
    code = run(*arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return code, lines[0]


def test_a_missing_model_folder_is_named(capsys, tmp_path):
    code, line = refusal(capsys, *HARVEST, "--model", tmp_path / "nowhere", "--out", tmp_path / "store")
    assert code == 1
    assert "nowhere" in line
    assert not (tmp_path / "store").exists()


def test_an_unknown_site_lists_the_known_ones(capsys, tmp_path):
    arguments = (
        "harvest",
        "--dataset",
        "organism",
        "--site",
        "99.resid_post",
        "--tokens",
        500,
        "--out",
        tmp_path / "s",
    )
    code, line = refusal(capsys, *arguments)
    assert code == 1
    assert "resid_post" in line
    assert "attn_z" in line
    assert not (tmp_path / "s").exists()


def test_harvest_train_and_features_take_one_text_for_many_sites(capsys, tmp_path):
    store, harvest = tmp_path / "store", ("harvest", "--dataset", "organism", "--tokens", 1_500, "--heldout", 0.3)
    assert run(*harvest, "--site", "all.resid_post", "--site", "1-2.mlp_in", "--out", store, "--quiet", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["sites"]) == [
        *(f"{layer}.resid_post" for layer in range(4)),
        "1.mlp_in",
        "2.mlp_in",
    ]
    train = (*TRAIN[:-3], "--tokens", 1_000, "--batch-size", 100, "--quiet", "--activations", store)
    train = (*train, "--architecture", "crosscoder", "--out", tmp_path / "made")
    assert run(*train, "--site", "1-2.mlp_in") == 0
    places = load_dictionary(tmp_path / "made" / "crosscoder-64-k4").places
    assert [str(place.site) for place in places] == ["1.mlp_in", "2.mlp_in"]
    capsys.readouterr()
    assert refusal(capsys, *train, "--site", "all.mlp") == (
        2,
        "sparsight: expected sites such as 2.resid_post, 0-3.attn_z,mlp_out, all.resid_post, embed or all, "
        "got 'all.mlp'; kinds: resid_pre, attn_z, attn_out, resid_mid, mlp_in, mlp_act, mlp_out, resid_post",
    )
    features = ("features", "--activations", store, "--no-model", "--feature", "domain", "--quiet")
    code, line = refusal(capsys, *features, "--site", "all.attn_z")
    assert code == 1
    assert "expected 0.attn_z; harvest that site" in line


def test_an_unknown_family_lists_the_known_ones(capsys, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    )
    code, line = refusal(capsys, *HARVEST, "--model", model, "--out", tmp_path / "store")
    assert code == 1
    assert "t5" in line
    assert "gpt2" in line


def test_an_empty_text_is_refused_and_leaves_nothing(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    out = tmp_path / "store"
    arguments = ("harvest", "--text", tmp_path / "empty.txt", "--site", "2.resid_post", "--tokens", 10, "--out", out)
    code, line = refusal(capsys, *arguments, "--quiet")
    assert code == 1
    assert "empty" in line
    assert not out.exists() or not any(out.iterdir())


def test_a_short_text_is_harvested_whole_and_says_so(capsys, tmp_path):
    (tmp_path / "short.txt").write_text("today is monday .\n\nshe is a doctor .\n")
    out = tmp_path / "store"
    assert (
        run("harvest", "--text", tmp_path / "short.txt", "--site", "2.resid_post", "--tokens", 1000, "--out", out) == 0
    )
    assert "1,000" in capsys.readouterr().err
    assert (out / "store.json").exists()


@pytest.mark.parametrize(("k", "named"), [(0, "k=0"), (65, "k=65")])
def test_an_impossible_k_is_a_wrong_call(capsys, folder, tmp_path, k, named):
    arguments = (
        "train",
        "--activations",
        folder / "store",
        "--latents",
        64,
        "--k",
        k,
        "--out",
        tmp_path / "d",
        "--quiet",
    )
    code, line = refusal(capsys, *arguments)
    assert code == 2
    assert named in line
    assert not (tmp_path / "d").exists()


def damaged(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the store, and its first shard."""
    store = tmp_path / "damaged"
    shutil.copytree(folder / "store", store)
    return store, min(store.glob("shard-*.safetensors"))


def test_a_truncated_shard_is_named(capsys, folder, dictionary, tmp_path):
    store, shard = damaged(folder, tmp_path)
    shard.write_bytes(shard.read_bytes()[:-100])
    code, line = refusal(capsys, "evaluate", dictionary, "--activations", store, "--quiet")
    assert code == 1
    assert shard.name in line


def test_a_flipped_byte_in_a_shard_is_found(capsys, folder, tmp_path):
    store, shard = damaged(folder, tmp_path)
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    code, line = refusal(capsys, *TRAIN, "--activations", store, "--out", tmp_path / "d")
    assert code == 1
    assert shard.name in line
    assert not (tmp_path / "d").exists()


def test_an_unknown_key_in_dictionary_json_is_named(capsys, folder, dictionary, tmp_path):
    copy = tmp_path / "dictionary"
    shutil.copytree(dictionary, copy)
    record = json.loads((copy / "dictionary.json").read_text())
    (copy / "dictionary.json").write_text(json.dumps({**record, "colour": "green"}))
    code, line = refusal(capsys, "evaluate", copy, "--activations", folder / "store", "--quiet")
    assert code == 1
    assert "colour" in line


def test_a_pickle_is_not_opened(capsys, folder, tmp_path):
    torch.save({"W_dec": torch.zeros(2, 2)}, tmp_path / "ae.pt")
    code, line = refusal(capsys, "evaluate", tmp_path / "ae.pt", "--activations", folder / "store", "--quiet")
    assert code == 1
    assert "ae.pt" in line


def test_ctrl_c_during_training_can_be_resumed_to_the_same_dictionary(folder, tmp_path):
    arguments = ["train", "--activations", str(folder / "store"), "--latents", "256", "--k", "8", "--tokens", "250000"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*arguments, "--quiet", "--out", whole) == 0

    process = subprocess.Popen(
        [sys.executable, "-m", "sparsight", *arguments, "--out", str(cut)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    while not any(f.stat().st_size for f in cut.glob("*/metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"--resume" in err
    assert run(*arguments, "--quiet", "--resume", "--out", cut) == 0

    (left,), (right,) = whole.glob("*/dictionary.safetensors"), cut.glob("*/dictionary.safetensors")
    assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_model_of_another_family_passes_through_the_same_commands(family, tmp_path, capsys):
    model = save_tiny(family, tmp_path / family)
    (tmp_path / "text.txt").write_text("\n\n".join(texts(120, seed=0, shortest=4)))
    store, out = tmp_path / "store", tmp_path / "dictionaries"
    harvest = ("harvest", "--model", model, "--text", tmp_path / "text.txt", "--site", "1.resid_post", "--tokens", 600)
    assert run(*harvest, "--out", store, "--quiet") == 0
    train = ("train", "--activations", store, "--latents", 64, "--k", 4, "--tokens", 6_000, "--batch-size", 64)
    assert run(*train, "--out", out, "--quiet") == 0
    capsys.readouterr()
    report = tmp_path / "report.html"
    assert run("evaluate", *out.glob("topk*"), "--activations", store, "--report", report, "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == str(model)
    assert 0 < result["fvu"]["value"] < 1
    assert result["loss"]["added"]["value"] is not None
    assert report.stat().st_size > 100_000


def test_the_approximate_search_is_used_by_name_only_and_tells_what_it_did(folder, dictionary, tmp_path, capsys):
    activations = ("--activations", folder / "store", "--json", "--quiet")
    rough = ("--search", "approximate", "--candidates", 16)
    pursuit = ("--coder", "gradient_pursuit", "--k", 4)
    assert run("code", dictionary, *activations, *pursuit, *rough, "--out", tmp_path / "codes.safetensors") == 0
    record = json.loads(capsys.readouterr().out)["search_record"]
    assert (record["candidates"], record["rows"]) == (16, 12_000)
    assert run("evaluate", dictionary, *activations, "--no-model", *pursuit, *rough) == 0
    assert json.loads(capsys.readouterr().out)["search"]["checked_rows"] > 400
    assert run("compare", dictionary, *activations, "--no-model", "--k", 4, "--tokens", 500, *rough) == 0
    arms = {arm["arm"]: arm["search"] for arm in json.loads(capsys.readouterr().out)["arms"]}
    assert [name for name, search in arms.items() if search is not None] == ["pursuit"]
    for wrong in (("--search", "fast"), ("--candidates", 16)):
        code, _ = refusal(capsys, "evaluate", dictionary, *activations, "--no-model", *pursuit, *wrong)
        assert code == 2


def test_code_writes_one_file_and_resumes_nothing_that_is_whole(folder, dictionary, tmp_path, capsys):
    out = tmp_path / "codes.safetensors"
    arguments = ("code", dictionary, "--activations", folder / "store", "--coder", "gradient_pursuit", "--k", 4)
    assert run(*arguments, "--out", out, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["n_rows"] == 12_000
    code, line = refusal(capsys, *arguments, "--out", out, "--quiet")
    assert code == 1
    assert "exists" in line
