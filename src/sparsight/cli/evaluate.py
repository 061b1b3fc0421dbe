"""`sparsight evaluate`: dictionaries and stored activations in, measurements out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsight.cli import options

if TYPE_CHECKING:
    from sparsight.activations import ActivationStore
    from sparsight.dictionaries import AbstractDictionary
    from sparsight.evaluation.side_by_side import SideBySide


def evaluate(
    dictionary: Annotated[
        list[Path], typer.Argument(help="Folders written by `sparsight train`; several: side by side.")
    ],
    activations: Annotated[
        list[Path],
        typer.Option(
            "--activations", help="Folder written by `sparsight harvest`. For a crosscoder of models, one for each."
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="For the loss added: name or folder. Default: the store's own model.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not load a model: leave the loss out.")] = False,
    coder: Annotated[
        str | None, typer.Option("--coder", help="Code with 'gradient_pursuit' in place of the dictionary's own rule.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="Latents per token, with --coder.")] = None,
    search: options.Search = "exact",
    candidates: options.Candidates = None,
    split: Annotated[str, typer.Option("--split", help="'heldout', 'train' or 'all' documents.")] = "heldout",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="Break down by 'position', 'norm' or a label. Repeat for several. Default: all three "
            "of position, norm and the label 'domain'.",
        ),
    ] = None,
    no_outliers: Annotated[
        bool, typer.Option("--no-outliers", help="Leave out tokens of more than 10 times the median norm.")
    ] = False,
    no_first: Annotated[bool, typer.Option("--no-first", help="Leave out the first token of each context.")] = False,
    baseline_tokens: Annotated[int, typer.Option("--baseline-tokens", min=0, help="For baselines; 0: none.")] = 8192,
    random_model_tokens: Annotated[
        int,
        typer.Option(
            "--random-model-tokens",
            min=0,
            help="Train a dictionary of this kind on so many tokens, on this model and on the model with its weights "
            "drawn anew, as a noise floor, here and in the benchmarks; 0: none.",
        ),
    ] = 0,
    gap_tokens: Annotated[
        int, typer.Option("--gap-tokens", min=0, help="Training tokens for the held-out gap; 0: none.")
    ] = 65_536,
    shrinkage_tokens: Annotated[
        int,
        typer.Option("--shrinkage-tokens", min=0, help="Say where shrinkage is, on about so many tokens; 0: do not."),
    ] = 0,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help="Run a benchmark: sparse_probing, absorption, scr, tpp, ravel, unlearning, or "
            "'all'. Repeat for several. Needs a labelled store.",
        ),
    ] = None,
    suite_examples: Annotated[
        int, typer.Option("--suite-examples", min=16, help="Examples of a class in the benchmarks.")
    ] = 256,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for evaluation.json, .txt and .html, and results in SAEBench's layout."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the measurements as a page with figures.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write a page of measurements and latents.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even if made for another site or model.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure dictionaries on held-out documents.

    Example: sparsight evaluate runs/dictionaries/topk-1024-k16 --activations runs/store --suite all --out runs/measured
    """
    from sparsight.evaluation.measuring import Settings
    from sparsight.evaluation.record_values import Resampling
    from sparsight.evaluation.side_by_side import evaluate_side_by_side
    from sparsight.evaluation.token_policy import TokenPolicy

    measured, stores = _dictionaries(dictionary, device), _stores(activations)
    if report is not None and (len(measured) > 1 or next(iter(measured.values())).places):
        raise ValueError("--report shows one dictionary of one site; leave it out, or use --html")
    lm = options.model_for(stores[0], model, no_model or len(stores) > 1, device)
    settings = Settings(
        coder=coder,
        k=k,
        search=options.search_named(search, candidates),
        split=split,
        shrinkage_tokens=shrinkage_tokens,
        gap_tokens=gap_tokens,
        baseline_tokens=baseline_tokens,
        random_model_tokens=random_model_tokens,
        by=by,
        classes=_classes(),
        policy=TokenPolicy(outliers=not no_outliers, first=not no_first),
        seed=seed,
        force=force,
        progress=not quiet,
    )
    found = evaluate_side_by_side(
        measured,
        stores[0] if len(stores) == 1 else stores,
        model=lm,
        settings=settings,
        resampling=Resampling(seed=seed),
        suite=None if suite is None else [] if suite == ["all"] else suite,
        suite_examples=suite_examples,
    )
    if report is not None:
        from sparsight.interpretation import write_dictionary_report

        ((name, one),) = measured.items()
        write_dictionary_report(report, one, stores[0], lm, found.evaluations[name], seed=seed, progress=not quiet)
    _write(found, measured, out, html)
    single = next(iter(found.evaluations.values())) if len(measured) == 1 and suite is None else found
    typer.echo(single.to_json() if as_json else single.to_table())


def _dictionaries(folders: list[Path], device: str) -> "dict[str, AbstractDictionary]":
    """By short names."""
    from sparsight.formats import load_dictionary

    return {name: load_dictionary(path).to(options.place(device)) for name, path in _names(folders).items()}


def _stores(folders: list[Path]) -> "list[ActivationStore]":
    """Every byte of them checked."""
    from sparsight.activations import ActivationStore

    stores = [ActivationStore(folder) for folder in folders]
    for store in stores:
        store.verify()
    return stores


def _names(folders: list[Path]) -> dict[str, Path]:
    """A short name for each folder; the whole path where two are alike."""
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    if len(set(names)) != len(names):
        raise ValueError("the same dictionary is named twice")
    return dict(zip(names, folders, strict=True))


def _classes() -> dict[str, tuple[str, ...]]:
    from sparsight.models.organism import FEATURES

    return {name: feature.classes for name, feature in FEATURES.items()}


def _write(found: "SideBySide", measured: "dict[str, AbstractDictionary]", out: Path | None, html: Path | None) -> None:
    """Files that were asked for."""
    from sparsight.evaluation.benchmarks.layout import of_benchmark, of_evaluation, write_saebench
    from sparsight.interpretation.evaluation_page import write_evaluation_page

    if html is not None:
        write_evaluation_page(html, found)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(found.to_json() + "\n", encoding="utf-8")
    (out / "evaluation.txt").write_text(found.to_table() + "\n", encoding="utf-8")
    write_evaluation_page(out / "evaluation.html", found)
    for name, dictionary in measured.items():
        folder = out / "saebench"
        write_saebench(folder, of_evaluation(found.evaluations[name], dictionary, name), name)
        for one in found.suites[name].benchmarks if name in found.suites else ():
            write_saebench(folder, of_benchmark(one, dictionary, name), name)
