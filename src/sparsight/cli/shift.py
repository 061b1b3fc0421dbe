"""`sparsight shift`: a classifier of biased texts, judged from them alone, and corrected."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsight.cli import options

if TYPE_CHECKING:
    from sparsight.circuits.nodes import Placed
    from sparsight.circuits.shift import LabelledTexts, ShiftRecord
    from sparsight.circuits.shift.judges import Judge
    from sparsight.models import LanguageModel, Site


def shift(
    dictionary: Annotated[
        list[Path], typer.Argument(help="Folders written by `sparsight train`, at sites up to the one that is read.")
    ],
    site: Annotated[str, typer.Option("--site", help="What the classifier reads, averaged over tokens.")],
    out: options.Out,
    model: options.Model = "organism",
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="'organism': its biographies. Else biographies from the web: a .jsonl or .parquet file, or a hub id "
            "such as LabHC/bias_in_bios.",
        ),
    ] = "organism",
    professions: Annotated[
        str, typer.Option("--professions", help="Two of them, for biographies from the web.")
    ] = "professor,nurse",
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            help="'labels' (the organism's), 'person' (asks here), 'page' (writes a page to answer in), or 'chat' (a "
            "language model).",
        ),
    ] = "labels",
    answers: Annotated[
        Path | None, typer.Option("--answers", help="For --judge page: the file that the page has saved.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="For --judge chat: an OpenAI-compatible address ending in /v1.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge-model", help="For --judge chat: the model's name there.")
    ] = None,
    n_texts: Annotated[int, typer.Option("--texts", help="Biased texts.")] = 200,
    n_test: Annotated[int, typer.Option("--test-texts", help="Texts of all combinations, to score on.")] = 400,
    n_judged: Annotated[int, typer.Option("--judged", help="Latents to judge.")] = 60,
    unclear: Annotated[str, typer.Option("--unclear", help="'keep' or 'remove' latents judged unclear.")] = "keep",
    unjudged: Annotated[
        str,
        typer.Option(
            "--unjudged",
            help="'keep' or 'remove' latents that are not judged, and what dictionaries leave unexplained.",
        ),
    ] = "keep",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Correct a classifier that was trained where another property goes with its task, by judging what it goes by.

    Example: sparsight shift runs/embed/topk-1024-k16 runs/2/topk-1024-k16 --site 2.resid_post --out runs/shift
    """
    from sparsight.circuits import shift as shifting
    from sparsight.formats import load_dictionary
    from sparsight.models import load_model

    asked = _judge(judge, endpoint, judge_model, answers)
    lm = load_model(model, device=device)
    made = [load_dictionary(folder).to(lm.device) for folder in dictionary]
    unplaced = [str(folder) for folder, one in zip(dictionary, made, strict=True) if one.site is None]
    if unplaced:
        raise ValueError(f"{unplaced[0]} does not know its site; train it from a store")
    placed = {one.site: one for one in made if one.site is not None}
    biased, test = (
        _texts(dataset, professions, n, seed=100 * seed + 2 + part, spurious=part == 0)
        for part, n in enumerate((n_texts, n_test))
    )
    if asked is None:
        typer.echo(_page(lm, dict(placed), biased, site, n_judged, unjudged, out))
        return
    found = shifting.shift(
        lm, dict(placed), biased, asked, site=site, test=test, n_judged=n_judged, unclear=unclear, unjudged=unjudged
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "shift.json").write_text(found.record.to_json() + "\n", encoding="utf-8")
    typer.echo(found.record.to_json() if as_json else _sentences(found.record, out))


def _judge(name: str, endpoint: str | None, model: str | None, answers: Path | None) -> "Judge | None":
    """The judge; None where a page is to be written first."""
    from sparsight.circuits.shift import ChatJudge, LabelJudge, PageJudge, PersonJudge

    if name == "chat":
        if endpoint is None or model is None:
            raise ValueError("--judge chat needs --endpoint ADDRESS and --judge-model NAME")
        return ChatJudge(endpoint, model)
    if answers is not None and name != "page":
        raise ValueError(f"--answers is for --judge page, got --judge {name}")
    if name == "page":
        return None if answers is None else PageJudge(answers)
    if name not in ("labels", "person"):
        raise ValueError(f"--judge must be 'labels', 'person', 'page' or 'chat', got {name!r}")
    return LabelJudge() if name == "labels" else PersonJudge(show=lambda text: typer.echo(text, err=True))


def _page(
    lm: "LanguageModel",
    placed: "dict[Site, Placed]",
    biased: "LabelledTexts",
    site: str,
    n_judged: int,
    unjudged: str,
    out: Path,
) -> str:
    """Write the page to judge in, and say what to do with it."""
    from sparsight.circuits.shift import write_page
    from sparsight.circuits.shift.shift import find, ranking

    found = find(lm, placed, biased, site=site, n_judged=n_judged, ranked_by=ranking(unjudged))
    out.mkdir(parents=True, exist_ok=True)
    write_page(found.evidence, found.task, biased.target_classes, out / "judge.html")
    return (
        f"{out / 'judge.html'} shows {len(found.evidence)} nodes; answer there, save answers.json, and run the same "
        "again with --answers FILE"
    )


def _texts(dataset: str, professions: str, n: int, *, seed: int, spurious: bool) -> "LabelledTexts":
    from sparsight.circuits.shift import bias_in_bios, organism_biographies

    if dataset == "organism":
        return organism_biographies(n, seed=seed, spurious=spurious, heldout=not spurious)
    names = professions.split(",")
    if len(names) != 2:
        raise ValueError(f"--professions must be two names with a comma between, got {professions!r}")
    split = "train" if spurious else "test"
    return bias_in_bios(dataset, n, seed=seed, spurious=spurious, professions=(names[0], names[1]), split=split)


def _sentences(record: "ShiftRecord", out: Path) -> str:
    verdicts = [judgement.verdict for judgement in record.judgements]
    lines = [
        f"judged {record.n_judged} nodes ({record.judge}): {verdicts.count('remove')} to remove, "
        f"{verdicts.count('keep')} to keep, {verdicts.count('unclear')} unclear",
        f"readings of {len(record.undecided)} of them cannot be told apart by the biased texts",
    ]
    for name, found in (("before", record.original), ("removed", record.ablated), ("fitted anew", record.retrained)):
        if found is not None:
            lines.append(
                f"{name}: worst group {found.worst_group:.3f}, all {found.accuracy:.3f}, equals the other property "
                f"{found.spurious:.3f}"
            )
    return "\n".join([*lines, f"{out / 'shift.json'} holds the judgements with their reasons"])
