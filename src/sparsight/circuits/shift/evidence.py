"""What a judge is shown of a node: everything taken from one set of texts, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import Chosen
from sparsight.circuits.shift.grammar import LabelEvidence, Marks, label_evidence, marks_of
from sparsight.circuits.splice import Splice
from sparsight.evaluation.frozen_record import Record
from sparsight.models import LanguageModel, Site


class WordShare(Record):
    """A word that a node fires on.

    Attributes:
        word: As the tokenizer shows it.
        share: Of the node's summed absolute value, the part on this word.
        mean: Mean value on the word where it is active.
        n: Tokens of this word on which it is active, in texts of target class 0 and of class 1.
    """

    word: str
    share: float
    mean: float
    n: tuple[int, int]


class Evidence(Record):
    """What a judge sees.

    Attributes:
        site, latent, kind: Which node.
        effect: On the classifier's right answers, mean over texts, in logits.
        density: Share of tokens on which it is active.
        class_means: Its mean over tokens, for texts of each target class.
        words: Where it fires, the largest share first.
        contexts: Stretches of text around its strongest tokens, which stand between ** **.
        promotes, suppresses: Words *of these texts* whose logits its atom raises and lowers most by the direct path.
        documents: Numbers of the texts this was taken from: all that the judgement has seen.
        labelled: What the labels of these texts say, where they have labels.
    """

    site: str
    latent: int
    kind: str
    effect: float
    density: float
    class_means: tuple[float, float]
    words: list[WordShare]
    contexts: list[str]
    promotes: list[str]
    suppresses: list[str]
    documents: list[int]
    labelled: LabelEvidence | None = None

    def to_text(self, target_classes: tuple[str, str]) -> str:
        """For a person or a language model; labels are not shown."""
        words = ", ".join(f"{w.word} ({w.share:.0%}; {w.n[0]}+{w.n[1]} times)" for w in self.words)
        lines = [
            f"{self.kind} {self.latent} at {self.site}: effect {self.effect:.3f}, on {self.density:.1%} of tokens",
            f"mean value in texts of {target_classes[0]}: {self.class_means[0]:.3g}; "
            f"of {target_classes[1]}: {self.class_means[1]:.3g}",
            f"fires on: {words}",
            *(["raises: " + ", ".join(self.promotes)] if self.promotes else []),
            *(["lowers: " + ", ".join(self.suppresses)] if self.suppresses else []),
            "examples:",
            *(f"  {context}" for context in self.contexts),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Readings:
    """Values of chosen nodes at every token of some texts.

    Attributes:
        texts: The texts.
        ids: Token ids, padded.
        counted: Where the texts' own tokens are.
        values: By site and latent, `[n, t]`, 0 where a node is silent.
        strings: Each token id of the texts as text.
        marks: Labels of the tokens, where the texts have labels.
    """

    texts: LabelledTexts
    ids: Int64[Tensor, "n t"]
    counted: Bool[Tensor, "n t"]
    values: dict[tuple[Site, int], Float[Tensor, "n t"]]
    strings: dict[int, str]
    marks: Marks | None

    def text_means(self, key: tuple[Site, int]) -> Float[Tensor, " n"]:
        """Mean of a node over the tokens of each text."""
        return self.values[key].sum(dim=1) / self.counted.sum(dim=1)


@torch.no_grad()
def read(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    texts: LabelledTexts,
    chosen: Chosen,
    *,
    batch_size: int = 64,
) -> Readings:
    """Values of chosen nodes over texts, in unedited passes."""
    tokens = lm.tokenize(texts.texts, context=lm.max_context)
    sites = sorted(site for site, latents in chosen.items() if len(latents))
    values = {(s, j): torch.zeros(tokens.ids.shape) for s in sites for j in chosen[s]}
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        splice = Splice({s: nodes[s] for s in sites}, where=batch.counted)
        lm.activations(batch, [sites[-1]], edits=splice.edits())
        for site in sites:
            own = splice.found[site]
            for latent in chosen[site]:
                value = own.values.masked_fill(own.indices != latent, 0).sum(dim=-1)
                values[site, latent][start : start + batch_size] = value.float().cpu()
    distinct = torch.unique(tokens.ids[tokens.counted])
    strings = dict(zip(distinct.tolist(), lm.tokens_to_strings(distinct), strict=True))
    return Readings(texts, tokens.ids, tokens.counted, values, strings, marks_of(texts, tokens.ids.shape[1]))


def evidence(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    readings: Readings,
    effects: Mapping[Site, Mapping[int, float]],
    *,
    n_words: int = 12,
    n_contexts: int = 6,
    window: int = 8,
) -> list[Evidence]:
    """Evidence on every node that was read, the largest effect first."""
    made = []
    for site, latent in readings.values:
        promotes, suppresses = _direct(lm, nodes[site], latent, list(readings.strings), readings.strings)
        value = readings.values[site, latent]
        text_means = readings.text_means((site, latent))
        target = readings.texts.target_labels
        made.append(
            Evidence(
                site=str(site),
                latent=latent,
                kind=nodes[site].kind,
                effect=effects[site][latent],
                density=float((value != 0).sum() / readings.counted.sum()),
                class_means=(float(text_means[target == 0].mean()), float(text_means[target == 1].mean())),
                words=_words(readings, value, n_words),
                contexts=_contexts(readings, value, n_contexts, window),
                promotes=promotes,
                suppresses=suppresses,
                documents=[item.id for item in readings.texts.items],
                labelled=None if readings.marks is None else label_evidence(value, readings.marks),
            )
        )
    return sorted(made, key=lambda e: -e.effect)


def _words(readings: Readings, value: Tensor, n: int) -> list[WordShare]:
    size = max(readings.strings) + 1
    mass = torch.zeros(size, dtype=torch.float64)
    mass.scatter_add_(0, readings.ids.flatten(), value.abs().double().flatten())
    active = value != 0
    counts = [
        torch.bincount(readings.ids[rows][active[rows]], minlength=size)
        for rows in (readings.texts.target_labels == c for c in (0, 1))
    ]
    total = float(mass.sum())
    found = []
    for token in mass.topk(min(n, size)).indices.tolist():
        if mass[token] == 0:
            break
        here = active & (readings.ids == token)
        found.append(
            WordShare(
                word=readings.strings[token].strip(),
                share=float(mass[token]) / total,
                mean=float(value[here].mean()),
                n=(int(counts[0][token]), int(counts[1][token])),
            )
        )
    return found


def _contexts(readings: Readings, value: Tensor, n: int, window: int) -> list[str]:
    """Around the strongest token of each of the `n` texts where the node is strongest."""
    best, at = value.abs().max(dim=1)
    found = []
    for row in best.topk(min(n, len(best))).indices.tolist():
        if best[row] == 0:
            break
        peak = int(at[row])
        places = [i for i in range(peak - window, peak + window + 1) if 0 <= i < value.shape[1]]
        words = [
            f"**{readings.strings[token].strip()}**" if i == peak else readings.strings[token].strip()
            for i in places
            if readings.counted[row, i]
            for token in [int(readings.ids[row, i])]
        ]
        found.append(" ".join(words))
    return found


def _direct(
    lm: LanguageModel, nodes: AbstractNodes, latent: int, ids: list[int], strings: Mapping[int, str], n: int = 6
) -> tuple[list[str], list[str]]:
    """Words among `ids` whose logits the atom moves most, directly; none where it is not in the residual stream."""
    head = lm.model.get_output_embeddings() if lm.has_causal_loss else None
    if head is None or nodes.writes.kind in ("attn_z", "mlp_act", "mlp_in") or nodes.d_out != head.weight.shape[1]:
        return [], []
    logits = head.weight.detach()[ids].float() @ nodes.atoms[latent].float()
    order = logits.argsort(descending=True).tolist()
    n = min(n, len(ids) // 2)
    return [strings[ids[i]].strip() for i in order[:n]], [strings[ids[i]].strip() for i in order[::-1][:n]]
