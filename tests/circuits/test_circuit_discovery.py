"""Circuits: identities in float64, and predictions met by acting on tiny models and the organism."""

from functools import cache

import pytest
import torch
from circuits.circuit_models import KeepFloat64, dictionary_at, tiny

from sparsight.circuits import DirectionNodes, NeuronNodes
from sparsight.circuits.discovery import (
    Circuit,
    Examples,
    act_on_edges,
    act_on_nodes,
    completeness,
    curve,
    error_share_curve,
    faithfulness,
    find_circuit,
    least_size,
    organism_task,
    random_nodes,
    to_dot,
    write_html,
)
from sparsight.circuits.discovery.changes import mean_nodes, nodes_at
from sparsight.circuits.discovery.effects import parents_of
from sparsight.circuits.metric import Metric
from sparsight.circuits.nodes import DictionaryNodes, nodes_of
from sparsight.dictionaries import ReLU, TopK, Transcoder
from sparsight.errors import DataError, FormatError, UndefinedMetric
from sparsight.models import Site, Tokens, load_model

MODELS = ("gpt2", "gemma2")
SITES = tuple(Site.parse(s) for s in ("0.resid_post", "1.attn_out", "1.mlp_out", "1.resid_post"))


@cache
def examples_of(name, n=6, seed=0):
    """Pairs of random texts of one length that differ in one word; the metric is a logit difference."""
    lm = tiny(name)
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(60, (n, 7), generator=g)
    others = words.clone()
    others[:, 2] = (others[:, 2] + 1 + torch.randint(58, (n,), generator=g)) % 60
    texts, patches = ([" ".join(f"w{i}" for i in row) for row in rows.tolist()] for rows in (words, others))
    return Examples.of_answers(lm, texts, ["w1"] * n, ["w2"] * n, patches)


@cache
def dictionaries_of(name):
    lm = tiny(name)
    return {s: dictionary_at(lm, s, ReLU(24, l1=1e-3), seed=i) for i, s in enumerate(SITES)}


@cache
def circuit_of(name):
    """Few nodes, with edges."""
    with KeepFloat64():
        return find_circuit(
            tiny(name), dictionaries_of(name), examples_of(name), node_threshold=1e-6, edge_threshold=0, max_nodes=14
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ablation", ["paired", "mean", "zero"])
def test_every_node_kept_is_the_model_and_none_is_nothing(name, ablation):
    with KeepFloat64():
        lm, dictionaries, examples = tiny(name), dictionaries_of(name), examples_of(name)
        found = find_circuit(lm, dictionaries, examples, node_threshold=0, edges=False, ablation=ablation, steps=1)
        everything = found.with_nodes({s: torch.ones_like(e, dtype=torch.bool) for s, e in found.effects.items()})
        nothing = found.with_nodes({s: torch.zeros_like(e, dtype=torch.bool) for s, e in found.effects.items()})
        assert faithfulness(everything, lm, dictionaries, examples).value == 1.0
        assert faithfulness(nothing, lm, dictionaries, examples).value == 0.0
        assert completeness(everything, lm, dictionaries, examples).value == 0.0
        assert completeness(nothing, lm, dictionaries, examples).value == 1.0


def with_transcoder(name):
    """A transcoder of the second MLP between dictionaries of the stream before and after it."""
    lm = tiny(name)
    sites = [Site.parse(s) for s in ("1.resid_mid", "1.mlp_out", "1.resid_post")]
    configs = (ReLU(24, l1=1e-3), Transcoder(24, k=6), ReLU(24, l1=1e-3))
    return {s: dictionary_at(lm, s, config, seed=i) for i, (s, config) in enumerate(zip(sites, configs, strict=True))}


def test_a_transcoder_codes_what_it_reads_and_its_error_is_of_what_it_writes():
    with KeepFloat64():
        lm, reads, writes = tiny("gpt2"), Site.parse("1.mlp_in"), Site.parse("1.mlp_out")
        transcoder = dictionary_at(lm, writes, Transcoder(24, k=6))
        ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(2))
        tokens = Tokens(ids, torch.ones(3, 7, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool))
        standing = nodes_at(lm, {writes: DictionaryNodes(transcoder, reads, writes)}, tokens)[writes]
        found = lm.activations(tokens, [reads, writes])
        code = transcoder.encode(found[reads].flatten(0, 1))
        values = torch.zeros(21, 24, dtype=torch.float64)
        values.scatter_add_(1, standing.nodes.indices.flatten(0, 1), standing.nodes.values.flatten(0, 1).detach())
        torch.testing.assert_close(values, code.to_dense().detach(), rtol=0, atol=0)
        left = found[writes].flatten(0, 1) - transcoder.decode(code)
        torch.testing.assert_close(standing.nodes.error.flatten(0, 1), left, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ablation", ["paired", "mean"])
def test_a_circuit_with_a_transcoder_keeps_the_identities(ablation):
    with KeepFloat64():
        lm, nodes, examples = tiny("gpt2"), with_transcoder("gpt2"), examples_of("gpt2")
        found = find_circuit(lm, nodes, examples, node_threshold=0, edge_threshold=-1, steps=1, ablation=ablation)
        everything = found.with_nodes({s: torch.ones_like(e, dtype=torch.bool) for s, e in found.effects.items()})
        nothing = found.with_nodes({s: torch.zeros_like(e, dtype=torch.bool) for s, e in found.effects.items()})
        assert faithfulness(everything, lm, nodes, examples).value == 1.0
        assert completeness(everything, lm, nodes, examples).value == 0.0
        assert faithfulness(nothing, lm, nodes, examples).value == 0.0
    # Latents of the transcoder code what the first site writes: edges run from there to them, and from them on.
    ends = [{edge.source for edge in found.record.edges if edge.target.startswith("1.mlp_out/latent")},
            {edge.target for edge in found.record.edges if edge.source.startswith("1.mlp_out/latent")}]  # fmt: skip
    assert {end.split("/")[0] for end in ends[0]} == {"1.resid_mid"}
    assert {end.split("/")[0] for end in ends[1]} == {"1.resid_post"}


@pytest.mark.parametrize("by_position", [False, True])
def test_edges_into_a_sum_add_up_to_the_effect_of_every_node(by_position):
    """`resid_post = resid_mid + mlp_out` is linear: what its nodes change by is what its parents' nodes send."""
    with KeepFloat64():
        lm, examples = tiny("gpt2"), examples_of("gpt2")
        sites = [Site.parse(s) for s in ("1.resid_mid", "1.mlp_out", "1.resid_post")]
        nodes = {sites[0]: dictionary_at(lm, sites[0], ReLU(24, l1=1e-3)),
                 sites[1]: dictionary_at(lm, sites[1], TopK(24, k=4)),
                 sites[2]: NeuronNodes(sites[2], 16, torch.zeros(1, dtype=torch.float64))}  # fmt: skip
        found = find_circuit(lm, nodes, examples, node_threshold=0, edge_threshold=-1, steps=3,
                             aggregation="none" if by_position else "sum")  # fmt: skip
    into = {}
    for edge in found.record.edges:
        into[edge.target] = into.get(edge.target, 0.0) + edge.weight
    effects = found.effects[sites[2]]
    checked = 0
    for node in found.record.nodes:
        if node.site == "1.resid_post" and node.kind == "neuron":
            assert into[node.id] == pytest.approx(float(effects[node.position or 0, node.index]), abs=1e-10)
            checked += 1
    assert checked >= 16


def test_in_a_linear_network_edges_into_any_node_and_the_metric_add_up():
    """Without MLPs and attention the stream is passed on: a chain of sites, linear up to the metric that reads it."""
    with KeepFloat64():
        lm, examples = tiny("llama"), examples_of("llama")
        sites = [Site.parse(s) for s in ("0.resid_pre", "0.resid_post", "1.resid_post")]
        weights = torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        metric = Metric(lambda x, rows: x[:, 3] @ weights, reads=sites[2])
        examples = Examples(examples.clean, examples.patch, metric)
        like = torch.zeros(1, dtype=torch.float64)
        nodes = {s: NeuronNodes(s, 16, like) for s in sites[1:]}
        nodes[sites[0]] = dictionary_at(lm, sites[0], ReLU(24, l1=1e-3))
        silenced = [p for n, p in lm.model.named_parameters() if "o_proj" in n or "down_proj" in n]
        saved = [p.data.clone() for p in silenced]
        try:
            for p in silenced:
                p.data.zero_()
            found = find_circuit(lm, nodes, examples, node_threshold=0, edge_threshold=-1, steps=2)
            total = float(act_total(lm, examples))
        finally:
            for p, data in zip(silenced, saved, strict=True):
                p.data.copy_(data)
    for site in sites:
        assert float(found.effects[site].sum()) == pytest.approx(total, abs=1e-10)
    into = {}
    for edge in found.record.edges:
        into[edge.target] = into.get(edge.target, 0.0) + edge.weight
    for node in found.record.nodes:
        if node.site != "0.resid_pre" and node.kind != "error":
            assert into[node.id] == pytest.approx(node.effect, abs=1e-10)
    assert into["output"] == pytest.approx(total, abs=1e-10)


def act_total(lm, examples):
    """The mean metric of the pairs less that of the examples."""
    reads = examples.metric.reads
    rows = torch.arange(len(examples))
    with torch.no_grad():
        values = [examples.metric.of(lm.activations(t, [reads])[reads], rows) for t in (examples.patch, examples.clean)]
    return (values[0] - values[1]).mean()


@pytest.mark.parametrize("placed", [dictionaries_of, with_transcoder])
@pytest.mark.parametrize("name", MODELS)
def test_small_changes_do_what_nodes_and_edges_predict(name, placed):
    """Words whose embeddings differ by 1e-6: first order is then all there is, and acting must agree with it."""
    g = torch.Generator().manual_seed(5)
    with KeepFloat64():
        lm = tiny.__wrapped__(name)
        rows = lm.model.get_input_embeddings().weight.data
        rows[34:64] = rows[4:34] + 1e-6 * torch.randn(30, 16, generator=g, dtype=torch.float64)
        words = torch.randint(30, (4, 7), generator=g)
        others = words + 30 * (torch.arange(7) == 2)
        texts, patches = ([" ".join(f"w{i}" for i in row) for row in r.tolist()] for r in (words, others))
        examples = Examples.of_answers(lm, texts, ["w1"] * 4, ["w2"] * 4, patches)
        dictionaries = placed(name)
        found = find_circuit(lm, dictionaries, examples, node_threshold=0, edge_threshold=0, max_nodes=10, steps=1)
        nodes = act_on_nodes(found, lm, dictionaries, examples)
        edges = act_on_edges(found, lm, dictionaries, examples)
    assert len(edges.acted) > 10
    assert nodes.relative_error < 1e-4
    assert edges.relative_error < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_acting_on_tiny_models_meets_most_of_what_is_predicted(name):
    with KeepFloat64():
        args = circuit_of(name), tiny(name), dictionaries_of(name), examples_of(name)
        nodes, edges = act_on_nodes(*args), act_on_edges(*args)
    assert nodes.correlation > 0.9
    assert edges.correlation > 0.6  # whole words are large changes: gates flip, and norms turn


def test_parents_stand_behind_the_last_site_that_everything_comes_through():
    parse = Site.parse
    sites = [parse(s) for s in ("embed", "0.attn_out", "0.resid_post", "1.attn_out", "1.mlp_out", "1.resid_post")]
    assert parents_of(sites, parse("1.resid_post")) == sites[2:5]
    assert parents_of(sites, parse("1.mlp_out")) == sites[2:4]
    assert parents_of(sites, parse("0.resid_post")) == sites[:2]
    assert parents_of(sites, None) == sites[5:]


def test_a_path_the_other_way_gives_the_opposite_effects():
    """Midpoints make effects antisymmetric in clean and pair, at sites the metric reads directly."""
    with KeepFloat64():
        lm, e = tiny("gpt2"), examples_of("gpt2")
        site = Site.parse("1.resid_post")
        nodes = {site: NeuronNodes(site, 16, torch.zeros(1, dtype=torch.float64))}
        there = find_circuit(lm, nodes, e, node_threshold=0, edges=False, steps=3)
        back = find_circuit(lm, nodes, Examples(e.patch, e.clean, e.metric), node_threshold=0, edges=False, steps=3)
    torch.testing.assert_close(there.effects[site], -back.effects[site])


def test_positions_add_up_to_what_is_summed_over_them():
    with KeepFloat64():
        lm, d, e = tiny("gpt2"), dictionaries_of("gpt2"), examples_of("gpt2")
        summed = find_circuit(lm, d, e, node_threshold=0, edges=False)
        apart = find_circuit(lm, d, e, node_threshold=0, edges=False, aggregation="none")
    assert apart.record.positions == 8
    for site in SITES:
        torch.testing.assert_close(apart.effects[site].sum(dim=0, keepdim=True), summed.effects[site])


@pytest.mark.parametrize("by_position", [False, True])
def test_what_nodes_are_ablated_to_is_their_mean_over_the_pairs(by_position):
    """By hand: codes and errors of the paired texts, special tokens left out."""
    with KeepFloat64(), torch.no_grad():
        lm, d, e = tiny("gpt2"), dictionaries_of("gpt2"), examples_of("gpt2")
        site = SITES[0]
        found = mean_nodes(lm, nodes_of(lm, {site: d[site]}), e, by_position=by_position, batch_size=4)[site]
        x = lm.activations(e.patch, [site])[site]
        code = d[site].encode_dense(x.flatten(0, 1))
        left = x - d[site](x.flatten(0, 1)).view_as(x)
    counted = e.patch.counted[..., None]
    for mine, whole in ((found.values, code.view(*x.shape[:2], -1)), (found.error, left)):
        by_place = (whole * counted).sum(dim=0)
        expected = by_place / len(e) if by_position else by_place.sum(dim=0, keepdim=True) / counted.sum()
        torch.testing.assert_close(mine.double(), expected, rtol=1e-6, atol=1e-6)


def test_nodes_and_edges_belong_by_the_size_of_their_effects_whatever_the_sign():
    with KeepFloat64():
        args = tiny("gpt2"), dictionaries_of("gpt2"), examples_of("gpt2")
        every = find_circuit(*args, node_threshold=1e-3, edge_threshold=-1, steps=1, max_nodes=30)
        some = find_circuit(*args, node_threshold=1e-3, edge_threshold=1e-3, steps=1, max_nodes=30)
    for effects, mask in ((every.effects[site], every.kept[site]) for site in SITES):
        assert float(effects[mask].abs().min()) > 1e-3
    largest = torch.cat([every.effects[site].abs().flatten() for site in SITES]).sort(descending=True).values
    assert [abs(n.effect) for n in every.record.nodes] == pytest.approx(largest[:30].tolist())
    assert {n.effect > 0 for n in every.record.nodes} == {True, False}
    wanted = {(edge.source, edge.target) for edge in every.record.edges if abs(edge.weight) > 1e-3}
    assert {(edge.source, edge.target) for edge in some.record.edges} == wanted
    assert {edge.weight > 0 for edge in some.record.edges} == {True, False}


def test_higher_thresholds_keep_fewer_nodes_and_sizes_are_kept():
    found = circuit_of("gpt2")
    assert len(found) == 14
    counts = [len(found.of_size(n)) for n in (1, 3, 9)]
    assert counts == [1, 3, 9]
    assert found.of_size(5, errors=False).n_errors == 0
    effects = [abs(node.effect) for node in found.record.nodes]
    assert effects == sorted(effects, reverse=True)


def test_random_circuits_match_in_number_site_and_errors():
    found = circuit_of("gpt2")
    drawn = random_nodes(found, seed=1)
    for site, mask in found.kept.items():
        assert drawn.kept[site][:, :-1].sum() == mask[:, :-1].sum()
        assert drawn.kept[site][:, -1].sum() == mask[:, -1].sum()


def test_a_saved_circuit_is_read_back_whole(tmp_path):
    found = circuit_of("gpt2")
    found.save(tmp_path / "c")
    again = Circuit.load(tmp_path / "c")
    assert again.record == found.record
    for site in SITES:
        torch.testing.assert_close(again.effects[site], found.effects[site], rtol=0, atol=0)
        torch.testing.assert_close(again.means[site].values, found.means[site].values, rtol=0, atol=0)
    ids = [node.id for node in found.record.nodes]
    assert len(set(ids)) == len(ids)
    assert all(id.split("/")[0] in found.record.sites for id in ids)
    (tmp_path / "c" / "circuit.json").write_text("{}")
    with pytest.raises(FormatError, match="damaged circuit"):
        Circuit.load(tmp_path / "c")
    with pytest.raises(FormatError, match="holds no circuit"):
        Circuit.load(tmp_path)


def test_nodes_and_edges_can_be_taken_out_and_what_is_not_there_cannot():
    found = circuit_of("gpt2")
    edge = found.record.edges[0]
    name = f"{edge.source} -> {edge.target}"
    assert edge not in found.without(name).record.edges
    node = found.record.nodes[0].id
    left = found.without(node)
    assert len(left) == len(found) - 1
    assert all(node not in (e.source, e.target) for e in left.record.edges)
    with pytest.raises(ValueError, match="has no 'nothing'"):
        found.without("nothing")


def test_pictures_hold_every_node_and_need_no_network(tmp_path):
    found = circuit_of("gpt2")
    dot = to_dot(found, {found.record.nodes[0].id: 'a "label"'})
    assert dot.startswith("digraph")
    assert dot.count("->") == len(found.record.edges)
    assert '\\"label\\"' in dot
    write_html(found, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    for node in found.record.nodes:
        assert node.id in page or node.id.replace("/", "\\u002f") in page
    assert 'src="http' not in page


def test_shares_of_errors_lie_between_none_and_all():
    for value in circuit_of("gpt2").error_share().values():
        assert 0 <= value <= 1


def test_more_directions_leave_less_to_errors_and_all_of_them_nothing():
    with KeepFloat64():
        lm, examples = tiny("gpt2"), examples_of("gpt2")
        site = Site.parse("1.resid_post")
        rows = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
        points = error_share_curve(
            lm, {n: {site: DirectionNodes(site, rows[:n])} for n in (16, 2, 8)}, examples, examples
        )
    assert [point.width for point in points] == [2, 8, 16]
    assert points[0].error_share > points[1].error_share > points[2].error_share
    assert points[2].error_share == pytest.approx(0, abs=1e-12)
    assert points[2].without_errors.value == pytest.approx(1)


def test_the_organism_s_pronoun_is_carried_by_few_neurons_and_not_by_random_ones():
    lm = load_model("organism", device="cpu")
    site = Site.parse("2.resid_post")
    nodes = {site: NeuronNodes(site, lm.width(site))}
    found_on, measured_on = (organism_task(lm, "gender", 16, seed=0, part=part) for part in (0, 1))
    found = find_circuit(lm, nodes, found_on, node_threshold=0.01, edge_threshold=0.01, max_nodes=60, steps=2)
    shares = curve(found, lm, nodes, measured_on, [1, 40, 128])
    assert shares[-1].value == pytest.approx(1.0, abs=0.02)
    assert shares[0].value < shares[1].value
    assert least_size(shares) <= 128
    small = found.of_size(40)
    drawn = random_nodes(small, seed=0)
    assert faithfulness(drawn, lm, nodes, measured_on).high < faithfulness(small, lm, nodes, measured_on).low
    acted = act_on_nodes(found.of_size(20), lm, nodes, measured_on)
    assert acted.correlation > 0.9


def test_edges_of_the_organism_s_pronoun_do_what_their_weights_say():
    lm = load_model("organism", device="cpu")
    nodes = {s: NeuronNodes(s, lm.width(s)) for s in map(Site.parse, ("1.resid_post", "2.resid_post"))}
    found_on, measured_on = (organism_task(lm, "gender", 8, seed=0, part=part) for part in (0, 1))
    found = find_circuit(lm, nodes, found_on, node_threshold=0.01, edge_threshold=0.01, max_nodes=20, steps=2)
    acted = act_on_edges(found, lm, nodes, measured_on, strongest=24)
    assert len(acted.acted) == 24
    assert any(not one.id.endswith("output") for one in acted.acted)
    assert acted.correlation > 0.8


def test_parts_of_a_task_share_no_text():
    lm = load_model("organism", device="cpu")
    parts = [organism_task(lm, "weekdays", 20, seed=0, part=part) for part in (0, 1)]
    rows = [{tuple(row) for row in e.clean.ids.tolist()} for e in parts]
    assert not rows[0] & rows[1]
    assert len(rows[0]) == 20
    with pytest.raises(ValueError, match="no task"):
        organism_task(lm, "cooking", 2, seed=0)


def test_what_is_no_circuit_is_refused():
    lm, d, e = tiny("gpt2"), dictionaries_of("gpt2"), examples_of("gpt2")
    with KeepFloat64():
        with pytest.raises(UndefinedMetric, match="the circuit is empty; the largest is"):
            find_circuit(lm, d, e, node_threshold=1e9, edges=False, steps=1)
        with pytest.raises(ValueError, match="pairs must be of equal lengths"):
            Examples.of_answers(lm, ["w1 w2"], ["w1"], ["w2"], ["w1 w2 w3"])
        with pytest.raises(DataError, match="is 2 tokens"):
            Examples.of_answers(lm, ["w1 w2"], ["w1 w3"], ["w2"])
        with pytest.raises(ValueError, match="needs pairs"):
            find_circuit(lm, d, Examples(e.clean, None, e.metric), ablation="paired")
        skipping = {Site.parse("1.mlp_out"): dictionary_at(lm, "1.mlp_out", Transcoder(24, k=6, skip=True))}
        with pytest.raises(ValueError, match="has a skip, which is no node"):
            find_circuit(lm, skipping, e, node_threshold=0, edges=False, steps=1)
        nan = Metric(lambda logits, rows: logits[:, -1, 0].detach() * float("nan"))
        with pytest.raises(UndefinedMetric, match="is nan"):
            find_circuit(lm, d, Examples(e.clean, e.patch, nan))
        with pytest.raises(ValueError, match="one number for each"):
            find_circuit(lm, d, Examples(e.clean, e.patch, Metric(lambda logits, rows: logits[:, -1])))
        with pytest.raises(ValueError, match="give the same dictionaries"):
            faithfulness(circuit_of("gpt2"), lm, {SITES[0]: d[SITES[0]]}, e)
        lengths = Examples.of_answers(lm, ["w1 w2", "w3"], ["w1"] * 2, ["w2"] * 2)
        with pytest.raises(ValueError, match="templates of one length"):
            find_circuit(lm, d, lengths, aggregation="none")
        with pytest.raises(ValueError, match="errors must be"):
            faithfulness(circuit_of("gpt2"), lm, d, e, errors="some")
        flat = Examples(e.clean, e.patch, Metric(lambda logits, rows: logits[:, -1, 0] * 0 + 1.0))
        with pytest.raises(UndefinedMetric, match="nothing for a circuit to explain"):
            faithfulness(circuit_of("gpt2"), lm, d, flat)
