"""Conversions say how far both sides agree, refuse what cannot be held, and notice what codes otherwise."""

import json
from pathlib import Path

import pytest
import torch
from foreign_files import D, M, assert_same, shaken

from sparsight.cli import main
from sparsight.dictionaries import BatchTopK, JumpReLU, Pursuit, TopK, TopKDictionary, Transcoder
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import convert, foreign, load_dictionary
from sparsight.formats.foreign import Format
from sparsight.models import Site


def saved(config: DictionaryConfig, folder: Path) -> Path:
    dictionary = shaken(config.build(D, torch.Generator().manual_seed(1)))
    dictionary.model, dictionary.site = "gpt2", Site(3, "resid_post")
    dictionary.provenance = {"prepend_bos": True}
    dictionary.save(folder)
    return folder


@pytest.mark.parametrize("name", ["sparsight", "saelens", "dictionary_learning", "sparsify", "llama_scope"])
def test_topk_goes_to_every_format_that_has_it(name: str, tmp_path: Path) -> None:
    conversion = convert(saved(TopK(M, 4), tmp_path / "ours"), tmp_path / "out", name)
    assert (conversion.source, conversion.target) == ("sparsight", name)
    assert 0 <= conversion.codes < 1e-5
    assert 0 <= conversion.reconstructions < 1e-5
    assert (conversion.n_tied, conversion.n_rows) == (0, 512)
    assert 0 < conversion.l0 <= 4
    assert_same(tmp_path / "out", load_dictionary(tmp_path / "ours"))


def test_what_a_format_does_not_say_is_listed(tmp_path: Path) -> None:
    conversion = convert(saved(BatchTopK(M, 4), tmp_path / "ours"), tmp_path / "out", "gemma_scope")
    assert conversion.architecture == ("batchtopk", "jumprelu")
    assert conversion.lost == ("model gpt2", "site 3.resid_post")
    assert "not kept: model gpt2" in conversion.to_text()
    assert convert(tmp_path / "ours", tmp_path / "saelens", "saelens").lost == ()


def test_it_is_checked_on_the_activations_that_are_given(tmp_path: Path) -> None:
    source = saved(JumpReLU(M, l0=0.0), tmp_path / "ours")
    x = 5 * torch.randn(70, D, generator=torch.Generator().manual_seed(4))
    assert convert(source, tmp_path / "out", "saelens", x=x).n_rows == 70
    dictionary = load_dictionary(source)
    quiet = dictionary.b_dec.detach().expand(3, D) * 1.0
    dictionary.b_enc.fill_(-50)
    dictionary.save(source)
    with pytest.raises(FormatError, match="no latent is active on these activations"):
        convert(source, tmp_path / "out", "saelens", x=quiet)
    with pytest.raises(ValueError, match="the dictionary's width 6, got 7"):
        convert(source, tmp_path / "out", "saelens", x=torch.zeros(3, 7))


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="codes like pursuit"):
        convert(saved(Pursuit(M, 4), tmp_path / "p"), tmp_path / "out", "sparsify")
    with pytest.raises(ValueError, match="format must be one of"):
        convert(tmp_path / "p", tmp_path / "out", "openai")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_another_format_is_left_alone(tmp_path: Path) -> None:
    source = saved(TopK(M, 4), tmp_path / "ours")
    convert(source, tmp_path / "out", "saelens")
    with pytest.raises(FormatError, match="holds a dictionary of format saelens"):
        convert(source, tmp_path / "out", "sparsify")


def shift(dictionary: TopKDictionary) -> None:
    dictionary.b_enc.add_(0.3)


def renumber(dictionary: TopKDictionary) -> None:
    """Reconstructions stay as they are; every code is another's."""
    order = torch.arange(M).roll(1)
    for parameter in (dictionary.atoms, dictionary.b_enc):
        parameter.copy_(parameter[order])
    dictionary.W_enc.copy_(dictionary.W_enc[:, order])


@pytest.mark.parametrize("wrong", [shift, renumber])
def test_a_writer_that_is_wrong_is_found_out(wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = foreign.FORMATS["saelens"]

    def read_wrongly(path: Path):
        dictionary = good.read(path)
        wrong(dictionary)
        return dictionary

    bad = Format("saelens", good.can_read, read_wrongly, good.write)
    monkeypatch.setitem(foreign.FORMATS, "saelens", bad)
    with pytest.raises(FormatError, match=r"what was written codes otherwise: .* of 512 rows differ"):
        convert(saved(TopK(M, 4), tmp_path / "ours"), tmp_path / "out", "saelens")


def test_the_command_prints_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(Transcoder(M, 4, skip=True), tmp_path / "ours")
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(source), str(tmp_path / "out"), "--to", "sparsify"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "max|difference| of codes" in printed
    with pytest.raises(SystemExit):
        main(["convert", str(source), str(tmp_path / "again"), "--to", "sparsify", "--json"])
    assert json.loads(capsys.readouterr().out)["codes"] < 1e-5
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(source), str(tmp_path / "x"), "--to", "gemma_scope"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
