"""What each site is: checked against the model's own forward pass and its own modules."""

from pathlib import Path

import pytest
import torch
from tiny_models import PAD, count_hooks, norms_behind, texts

from sparsight.models import LanguageModel, Site


def _at(lm: LanguageModel, layer: int) -> dict[str, torch.Tensor]:
    """Every site of one layer, by kind."""
    tokens = lm.tokenize(texts(3, seed=0))
    sites = [site for site in lm.sites() if site.layer == layer]
    return {site.kind: value for site, value in lm.activations(tokens, sites).items()}


def _block(lm: LanguageModel, layer: int) -> torch.nn.Module:
    blocks = [module for module in lm.model.modules() if isinstance(module, torch.nn.ModuleList)]
    return blocks[0][layer]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_residual_stream_is_the_sum_of_what_is_written_to_it(lm: LanguageModel, layer: int) -> None:
    x = _at(lm, layer)
    norms = norms_behind(lm, _block(lm, layer))
    if norms is not None:
        attention_norm, output_norm = norms
        torch.testing.assert_close(x["resid_mid"], attention_norm(x["resid_pre"] + x["attn_out"]), rtol=0, atol=1e-10)
        torch.testing.assert_close(x["resid_post"], output_norm(x["resid_mid"] + x["mlp_out"]), rtol=0, atol=1e-10)
        return
    whole = x["resid_pre"] + x["attn_out"] + x["mlp_out"]
    torch.testing.assert_close(x["resid_post"], whole, rtol=0, atol=1e-10)
    if "resid_mid" in x:
        torch.testing.assert_close(x["resid_mid"], x["resid_pre"] + x["attn_out"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sites_agree_with_the_hidden_states_of_transformers(lm: LanguageModel, tiny, dtype: str) -> None:
    lm = tiny(Path(lm.name).name, dtype)
    tokens = lm.tokenize(texts(1, seed=1, shortest=8))
    read = lm.activations(tokens, lm.sites())
    hidden = lm.model(tokens.ids, output_hidden_states=True).hidden_states
    assert len(hidden) == lm.n_layers + 1
    tolerance = {"rtol": 0, "atol": 1e-10 if dtype == "float64" else 1e-5}
    for layer in range(lm.n_layers):
        torch.testing.assert_close(read[Site(layer, "resid_pre")], hidden[layer], **tolerance)
    for layer in range(lm.n_layers - 1):
        torch.testing.assert_close(read[Site(layer, "resid_post")], hidden[layer + 1], **tolerance)
    last = read[Site(lm.n_layers - 1, "resid_post")]
    base = lm._base
    final_norms = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm", "llama": "norm", "gemma2": "norm"}
    final_norms |= {"phi": "final_layernorm", "opt": "decoder.final_layer_norm"}
    final_norm = final_norms.get(lm.family)
    if lm.family == "opt" and not lm.model.config.do_layer_norm_before:
        final_norm = "decoder.project_out"  # which is applied before the last hidden state, and stands in for it
    after = last if final_norm is None else base.get_submodule(final_norm)(last)
    torch.testing.assert_close(after, hidden[-1], **tolerance)
    embed, positions = read[Site(None, "embed")], torch.arange(tokens.ids.shape[1])
    if lm.family == "gpt2":
        embed = embed + base.wpe(positions)
    elif lm.family == "opt":
        project = base.decoder.project_in or torch.nn.Identity()
        embed = project(embed) + base.decoder.embed_positions.weight[positions + base.decoder.embed_positions.offset]
    elif lm.family in ("bert", "roberta"):
        positions = positions + (lm.family == "roberta") * (PAD + 1)
        table = base.embeddings
        embed = table.LayerNorm(embed + table.position_embeddings(positions) + table.token_type_embeddings.weight[0])
    torch.testing.assert_close(embed, hidden[0], **tolerance)


def test_the_sites_inside_attention_and_mlp_are_what_their_names_say(lm: LanguageModel) -> None:
    """`attn_z` goes into the output projection, `mlp_act` into the down projection, and `mlp_in` is normed."""
    x, block = _at(lm, 1), _block(lm, 1)
    parts = {
        "gpt2": lambda: (block.attn.c_proj, block.mlp, block.mlp.c_proj, block.ln_2),
        "gpt_neox": lambda: (
            block.attention.dense,
            block.mlp,
            block.mlp.dense_4h_to_h,
            block.post_attention_layernorm,
        ),
        "llama": lambda: (block.self_attn.o_proj, block.mlp, block.mlp.down_proj, block.post_attention_layernorm),
        "gemma2": lambda: (
            lambda z: block.post_attention_layernorm(block.self_attn.o_proj(z)),
            lambda m: block.post_feedforward_layernorm(block.mlp(m)),
            lambda a: block.post_feedforward_layernorm(block.mlp.down_proj(a)),
            block.pre_feedforward_layernorm,
        ),
        "phi": lambda: (block.self_attn.dense, block.mlp, block.mlp.fc2, block.input_layernorm),
        "opt": lambda: (
            block.self_attn.out_proj,
            lambda m: block.fc2(block.activation_fn(block.fc1(m))),
            block.fc2,
            block.final_layer_norm if lm.model.config.do_layer_norm_before else lambda r: r,
        ),
        "bert": lambda: (
            block.attention.output.dense,
            lambda m: block.output.dense(block.intermediate(m)),
            block.output.dense,
            lambda r: r,
        ),
    }[{"roberta": "bert"}.get(lm.family, lm.family)]()
    project, mlp, down, norm = parts
    before_mlp = x.get("resid_mid", x["resid_pre"])  # with a parallel residual the MLP reads resid_pre
    for got, expected in [
        (x["attn_out"], project(x["attn_z"])),
        (x["mlp_out"], mlp(x["mlp_in"])),
        (x["mlp_out"], down(x["mlp_act"])),
        (x["mlp_in"], norm(before_mlp)),
    ]:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_every_site_has_the_width_that_is_known_without_running(lm: LanguageModel) -> None:
    tokens = lm.tokenize(texts(2, seed=2))
    for site, value in lm.activations(tokens, lm.sites()).items():
        assert value.shape == (*tokens.ids.shape, lm.width(site)), site
        assert value.dtype == lm.dtype


def test_a_parallel_residual_has_no_stream_between_attention_and_mlp(tiny) -> None:
    kinds = {site.kind for site in tiny("gpt_neox").sites()}
    assert {site.kind for site in tiny("gpt_neox_sequential").sites()} - kinds == {"resid_mid"}


def test_all_nine_kinds_exist_elsewhere_in_the_order_of_the_pass(tiny) -> None:
    names = [str(site) for site in tiny("llama").sites()]
    kinds = ["resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "resid_post"]
    assert names == ["embed", *(f"{layer}.{kind}" for layer in (0, 1) for kind in kinds)]
    assert tiny("llama").sites() == sorted(tiny("llama").sites())


def test_reading_leaves_no_hook(lm: LanguageModel) -> None:
    before = count_hooks(lm.model)
    lm.activations(lm.tokenize("w1 w2"), lm.sites())
    assert count_hooks(lm.model) == before
