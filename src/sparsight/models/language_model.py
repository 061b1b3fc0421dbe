"""A Hugging Face model whose activations are read and edited at sites."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.errors import ModelError
from sparsight.models.families import input_width, known_family, places
from sparsight.models.forward_pass import Edit, ForwardPass, Unneeded, chained, is_per_token, is_replacement
from sparsight.models.generation import Cached, NextLogits, generate
from sparsight.models.generic import generic_family
from sparsight.models.prediction import mean_loss, next_token_loss, predicted
from sparsight.models.site import Site, describe_sites
from sparsight.models.tokenization import padding_id, tokenize, tokens_to_strings
from sparsight.models.tokens import Tokens


def _positions(tokens: Tokens) -> Int64[Tensor, "b t"]:
    """Real tokens before each token of its row."""
    return (tokens.mask.long().cumsum(dim=1) - 1).clamp_min(0)


def _note_output(handed: list[Any], _: Any, __: Any, output: Any) -> None:
    handed.append(output)


class LanguageModel:
    """A transformer of any known family, with one name for each place inside it.

    Everything is computed by the model's own code: reads and edits are hooks that stand for one pass. The model is used
    in evaluation mode, in which dropout is the identity.

    Attributes:
        name: What it was loaded as.
        family: Name of its family (`sparsight.models.families`).
        model: The Hugging Face model itself.
        tokenizer: Its Hugging Face tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        """Wrap a model that is already in memory; `load_model` finds, loads and freezes one.

        A causal model of an unknown family gets the sites of its residual stream, if that can be found.

        Raises:
            ModelError: its family is unknown and its residual stream cannot be found, or it is a causal family without
                its head.
        """
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        config = self.model.config
        self._family = known_family(config.model_type) or generic_family(self.model, name)
        if self._family.has_causal_loss and self.model.get_output_embeddings() is None:
            raise ModelError(f"{name} came without its language-model head; load it with AutoModelForCausalLM")
        self._base = self.model.base_model
        if self._base is self.model and self._family.has_causal_loss:
            self._base = self.model.model  # Gemma 3 in transformers 4, which looks for its base under another name
        self._places = places(self._family, self._base, config)
        self._first_position = self._family.first_position(config)
        self._arguments = set(inspect.signature(self.model.forward).parameters)
        self._standing: tuple[Mapping[Site, Edit], ...] = ()

    @property
    def family(self) -> str:
        return self._family.name

    @property
    def device(self) -> torch.device:
        """Where tokens go; of a model on several devices, that of its embeddings."""
        embeddings = self.model.get_input_embeddings()
        parameter: Tensor = embeddings.weight
        if parameter.device.type != "meta":
            return parameter.device
        return torch.device(embeddings._hf_hook.execution_device)  # kept on disk, and brought in for each pass

    @property
    def dtype(self) -> torch.dtype:
        parameter: Tensor = next(self.model.parameters())
        return parameter.dtype

    @property
    def n_layers(self) -> int:
        return 1 + max(site.layer for site in self._places if site.layer is not None)

    @property
    def has_causal_loss(self) -> bool:
        """Whether the model predicts the next token, so that `logits`, `loss` and `generate` exist."""
        return self._family.has_causal_loss

    @property
    def max_context(self) -> int:
        """Most tokens in one sequence, special ones included."""
        longest = int(self.tokenizer.model_max_length)
        positions = getattr(self.model.config, "max_position_embeddings", None)  # recurrent models have no limit
        return longest if positions is None else min(int(positions) - self._first_position, longest)

    @property
    def n_vocabulary(self) -> int:
        """Number of token ids the model can read."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def sites(self) -> list[Site]:
        """Every site, in the order of a forward pass."""
        return list(self._places)

    def width(self, site: Site | str) -> int:
        """Dimension of the activations at a site, known without running the model.

        Raises:
            ModelError: the model has no such site.
            ValueError: the text names no site.
        """
        site = Site.parse(site)
        self._check_sites([site])
        if site.kind in ("attn_z", "mlp_act"):
            return input_width(self._places[site].read.module)
        if site.kind == "embed":  # OPT-350m embeds in fewer dimensions, and projects
            return int(self.model.get_input_embeddings().weight.shape[1])
        return int(self.model.config.hidden_size)

    def tokenize(self, texts: str | Sequence[str], *, context: int | None = None) -> Tokens:
        """Texts as tokens, with the special tokens the tokenizer adds, cut to `context` and padded on the right.

        Args:
            texts: One text or several.
            context: Most tokens kept of a text, special ones included; `max_context` when not given. It may be larger
                than `max_context`: such tokens can be cut into pieces, not read at once.
        Raises:
            ValueError: no text came, or `context` leaves no room beside the special tokens.
            DataError: a text gives no tokens.
        """
        return tokenize(self.tokenizer, texts, self.max_context if context is None else context)

    def tokens_to_strings(self, ids: Int64[Tensor, " t"]) -> list[str]:
        """One readable string for each token id."""
        return tokens_to_strings(self.tokenizer, ids)

    @contextmanager
    def edited(self, edits: Mapping[Site, Edit]) -> Iterator["LanguageModel"]:
        """Let edits stand for every pass made inside this: reads, logits, losses and generation.

        They come before the edits given to a call, and inner ones after outer ones. Calls of the Hugging Face model
        itself are not edited.

        Raises:
            ModelError: a site is unknown.
        """
        self._check_sites(list(edits))
        before = self._standing
        self._standing = (*before, edits)
        try:
            yield self
        finally:
            self._standing = before

    def activations(
        self, tokens: Tokens, sites: Sequence[Site], *, edits: Mapping[Site, Edit] | None = None
    ) -> dict[Site, Float[Tensor, "b t d"]]:
        """Activations at several sites in one pass, which stops as soon as the deepest site is reached.

        A site that is both edited and read gives its edited value. What stands at padding is meaningless.

        Args:
            tokens: The batch; moved to the model's device.
            sites: Where to read.
            edits: Functions from a site's activations to what stands in their place.
        Returns:
            One tensor per site, on the model's device, in its dtype; in the autograd graph unless under `no_grad`.
        Raises:
            ModelError: a site is unknown, or was not computed.
            ValueError: no site came, the tokens do not fit the model, or an edit returned another shape or dtype.
        """
        if not sites:
            raise ValueError("expected at least one site to read, got none")
        forward_pass = self._pass(sites, edits, stop=True)
        inputs = self._inputs(tokens)
        with forward_pass.hooked(_positions(tokens.to(self.device))):
            self.model(**inputs)
        return {site: forward_pass.reads[site] for site in sites}

    def logits(self, tokens: Tokens, *, edits: Mapping[Site, Edit] | None = None) -> Float[Tensor, "b t vocabulary"]:
        """The model's own logits, in its dtype, differentiable through the edits.

        Raises:
            ModelError: the model has no causal head, a site is unknown or was not computed.
            ValueError: the tokens do not fit the model, or an edit returned another shape or dtype.
        """
        self._check_causal("logits")
        inputs = self._inputs(tokens)
        with self._pass([], edits, stop=False).hooked(_positions(tokens.to(self.device))):
            logits: Tensor = self.model(**inputs).logits
        return logits

    def loss(
        self,
        tokens: Tokens,
        *,
        edits: Mapping[Site, Edit] | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Float[Tensor, "..."]:
        """Next-token cross-entropy in nats, computed in float32.

        A token counts if it is real and follows a real token; special tokens count as the model was trained on them.

        Args:
            tokens: The batch.
            edits: Functions from a site's activations to what stands in their place.
            reduction: "mean" over all tokens that count, or "none": `[b, t - 1]`, 0 where the target is padding.
        Raises:
            ModelError: the model has no causal head, a site is unknown or was not computed.
            UndefinedMetric: no token counts, and the mean was asked for.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        self._check_causal("loss")
        tokens = tokens.to(self.device)
        hidden = self._final_hidden(tokens, edits)
        losses = next_token_loss(hidden, self._unembed, tokens, self.n_vocabulary)
        return losses if reduction == "none" else mean_loss(losses, predicted(tokens))

    @torch.no_grad()
    def generate(
        self,
        tokens: Tokens,
        *,
        max_new_tokens: int,
        edits: Mapping[Site, Edit] | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        edits_per_token: bool = False,
    ) -> Tokens:
        """Write on from each prompt; a row ends at the model's end-of-sequence token.

        With edits, each token is chosen from `logits(tokens so far, edits=edits)`: at every step an edit sees whole
        sequences `[b, t, d]`, as everywhere else. That reads everything again for each token. `edits_per_token=True`
        promises that edits treat each token by itself, whatever its place; then keys and values are kept, an edit sees
        the prompts once (padded on the left) and then one token `[b, 1, d]` at a time, and the result is the same. The
        edits of `sparsight.intervention` say so themselves, and are told where the tokens stand.

        Args:
            tokens: Prompts of any lengths.
            max_new_tokens: Most tokens added to a row.
            edits: Functions from a site's activations to what stands in their place.
            seed: For temperatures above 0; a row draws the same whatever stands beside it.
            temperature: 0 takes the likeliest token.
            edits_per_token: See above.
        Returns:
            Prompts and what follows, padded on the right, on the model's device.
        Raises:
            ModelError: the model has no causal head, a site is unknown or was not computed.
            ValueError: a wrong argument, or prompts that leave no room in the model's context.
        """
        self._check_causal("generate")
        if max_new_tokens < 1 or temperature < 0:
            raise ValueError(
                f"expected max_new_tokens >= 1 and temperature >= 0, got {max_new_tokens} and {temperature}"
            )
        lengths = tokens.mask.sum(dim=1)
        if len(tokens) == 0 or int(lengths.min()) == 0:
            raise ValueError("every prompt needs at least one token; tokenize a text, or start from the BOS token")
        if int(lengths.max()) + max_new_tokens > self.max_context:
            raise ValueError(
                f"a prompt of {int(lengths.max())} tokens and {max_new_tokens} new ones exceed the context of "
                f"{self.max_context}; shorten either"
            )
        tokens = tokens.to(self.device)
        self._check_tokens(tokens)
        next_logits: NextLogits = partial(self._next_logits, edits)
        standing = all(is_per_token(edit) for edits_ in self._standing for edit in edits_.values())
        alone = edits_per_token or all(is_per_token(edit) for edit in (edits or {}).values())
        if standing and alone and "past_key_values" in self._arguments:
            next_logits = Cached(partial(self._forward, edits))
        return generate(
            tokens,
            next_logits,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            end_ids=self._end_ids(),
            pad_id=padding_id(self.tokenizer),
        )

    def _next_logits(self, edits: Mapping[Site, Edit] | None, tokens: Tokens) -> Float[Tensor, "b vocabulary"]:
        hidden = self._final_hidden(tokens, edits)
        last = tokens.mask.sum(dim=1) - 1
        return self._unembed(hidden[torch.arange(len(tokens), device=hidden.device), last])

    def _forward(self, edits: Mapping[Site, Edit] | None, **inputs: Any) -> Any:
        positions = inputs["position_ids"]
        with self._pass([], edits, stop=False).hooked(positions):
            return self.model(**self._taken(inputs))

    def _final_hidden(self, tokens: Tokens, edits: Mapping[Site, Edit] | None) -> Float[Tensor, "b t d"]:
        """What the head takes in: the last residual stream, after the final norm; of a generic model its logits."""
        if self._is_generic:
            return self.logits(tokens, edits=edits)
        inputs = self._inputs(tokens)
        with self._pass([], edits, stop=False).hooked(_positions(tokens.to(self.device))):
            hidden: Tensor = self._base(**inputs).last_hidden_state
        return hidden

    @property
    def _is_generic(self) -> bool:
        return self._family.name == "generic"

    def _unembed(self, hidden: Float[Tensor, "m d"]) -> Float[Tensor, "m vocabulary"]:
        if self._is_generic:  # some scale their logits behind the head, and no table says which
            return hidden
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _end_ids(self) -> list[int]:
        end = self.model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        return [] if end is None else list(end) if isinstance(end, list) else [int(end)]

    def _pass(self, sites: Sequence[Site], edits: Mapping[Site, Edit] | None, *, stop: bool) -> ForwardPass:
        edits = chained([*self._standing, edits or {}])
        self._check_sites([*sites, *edits])
        return ForwardPass(self._places, sites, edits, stop=stop, unneeded=self._unneeded(sites, edits))

    def _unneeded(self, sites: Sequence[Site], edits: Mapping[Site, Edit]) -> Unneeded:
        """Blocks before a residual stream that is replaced as a whole, if nothing before it is read or edited."""
        first = min([*sites, *edits], default=Site(None, "embed"))
        replaced = first in edits and is_replacement(edits[first]) and not self._is_generic
        if not replaced or first.layer is None:
            return Unneeded()
        n = {"resid_pre": first.layer, "resid_post": first.layer + 1}.get(first.kind, 0)
        in_tuple = self._hands_on_tuples if n else None
        if in_tuple is None:
            return Unneeded()
        return Unneeded(tuple(self._places[Site(i, "resid_pre")].write.module for i in range(n)), in_tuple)

    @cached_property
    def _hands_on_tuples(self) -> bool | None:
        """Whether blocks hand on their output in a tuple; None if there is more in it."""
        handed: list[Any] = []
        block = self._places[Site(0, "resid_pre")].write.module
        handle = block.register_forward_hook(partial(_note_output, handed))
        try:
            with torch.no_grad():
                self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device))
        finally:
            handle.remove()
        if isinstance(handed[0], tuple):
            return True if len(handed[0]) == 1 else None
        return False

    def _inputs(self, tokens: Tokens) -> dict[str, Any]:
        """Arguments of the Hugging Face model.

        Under causal attention no real token sees padding on its right, so the mask is left out there: that is the
        faster path. Otherwise the mask is given, and positions count real tokens.
        """
        self._check_tokens(tokens)
        tokens = tokens.to(self.device)
        # Anything but the padding token may stand under padding: transformers warns where it sees that without a mask.
        filler = 1 if self.model.config.pad_token_id == 0 else 0
        inputs: dict[str, Any] = {"input_ids": tokens.ids.masked_fill(~tokens.mask, filler)}
        padded_right = not bool((tokens.mask[:, 1:] & ~tokens.mask[:, :-1]).any())
        if not padded_right or (not self.has_causal_loss and not bool(tokens.mask.all())):
            inputs["attention_mask"] = tokens.mask.long()
        if not padded_right or self._first_position:
            inputs["position_ids"] = (tokens.mask.long().cumsum(dim=1) - 1).clamp_min(0) + self._first_position
        if self.has_causal_loss:
            inputs["use_cache"] = False
        return self._taken(inputs)

    def _taken(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs that the model takes: a model without positions (ALiBi) has no argument for them."""
        return {name: value for name, value in inputs.items() if name in self._arguments or not self._is_generic}

    def _check_tokens(self, tokens: Tokens) -> None:
        n, length = tokens.ids.shape
        if n == 0 or length == 0:
            raise ValueError(f"expected at least one token, got ids of shape {[n, length]}")
        if length > self.max_context:
            raise ValueError(f"the model reads at most {self.max_context} tokens, got {length}; cut the texts")
        real = tokens.ids.masked_fill(~tokens.mask, 0)
        highest, lowest = int(real.max()), int(real.min())
        if lowest < 0 or highest >= self.n_vocabulary:
            raise ValueError(
                f"token ids must be in [0, {self.n_vocabulary}), got {lowest} to {highest}; use this model's tokenizer"
            )

    def _check_sites(self, sites: Sequence[Site]) -> None:
        for site in sites:
            if site not in self._places:
                raise ModelError(f"{self.name} has no site {site}; it has {describe_sites(self.sites())}")

    def _check_causal(self, what: str) -> None:
        if not self.has_causal_loss:
            raise ModelError(
                f"{self.name} has no causal head: the {self.family} family does not predict the next token, so {what} "
                "is undefined; use activations, or a causal model"
            )
