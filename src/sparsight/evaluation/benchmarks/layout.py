"""Results in the JSON layout of SAEBench's result files, so that they can be put beside published ones.

The layout is theirs, the definitions are ours: where they differ, docs/evaluation.md says how. Numbers that do not
exist are left out.
"""

import time
import uuid
from pathlib import Path
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation.arms import encoder_weights, has_encoder
from sparsight.evaluation.benchmarks.record import Benchmark
from sparsight.evaluation.record import Evaluation

TYPES = {
    "sparse_probing": "sparse_probing",
    "absorption": "absorption_first_letter",
    "scr": "scr",
    "tpp": "tpp",
    "ravel": "ravel",
    "unlearning": "unlearning",
    "core": "core",
}


def saebench_file(
    kind: str,
    metrics: dict[str, dict[str, float]],
    *,
    config: dict[str, Any],
    dictionary: AbstractDictionary,
    name: str,
    details: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One result file: metrics in two levels, whatever else in details."""
    return {
        "eval_type_id": TYPES[kind],
        "eval_config": config,
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "eval_result_unstructured": None,
        "sae_bench_commit_hash": f"none: written by sparsight {_version()}",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": name,
        "sae_lens_version": None,
        "sae_cfg_dict": {
            "architecture": getattr(dictionary.config, "architecture", type(dictionary).__name__),
            "d_in": dictionary.d_in,
            "d_sae": dictionary.n_latents,
            "hook_name": None if dictionary.site is None else str(dictionary.site),
            "model_name": dictionary.model,
        },
    }


def of_benchmark(found: Benchmark, dictionary: AbstractDictionary, name: str) -> dict[str, Any]:
    """The result file of a benchmark."""
    config = {"model_name": dictionary.model, **found.settings}
    return saebench_file(
        found.benchmark,
        found.metrics,
        config=config,
        dictionary=dictionary,
        name=name,
        details=[dict(row) for row in found.details],
    )


def of_evaluation(e: Evaluation, dictionary: AbstractDictionary, name: str) -> dict[str, Any]:
    """The result file of the core numbers."""
    metrics: dict[str, dict[str, float]] = {
        "reconstruction_quality": {
            "explained_variance": 1 - e.fvu.value,
            **({} if e.fvu_token_mean is None else {"explained_variance_legacy": 1 - e.fvu_token_mean.value}),
            **({} if e.mse is None else {"mse": e.mse.value}),
            "cossim": e.cosine.value,
        },
        "sparsity": {"l0": e.l0.mean.value, **({} if e.l1 is None else {"l1": e.l1.value})},
        "token_stats": {
            "total_tokens_eval_reconstruction": 0 if e.loss is None else e.loss.n_tokens,
            "total_tokens_eval_sparsity_variance": e.n_tokens,
        },
        "misc_metrics": {
            "freq_over_1_percent": e.density.over_1_percent,
            "freq_over_10_percent": e.density.dense_fraction,
            "normalized_freq_over_1_percent": e.density.uses_over_1_percent,
            "normalized_freq_over_10_percent": e.density.uses_dense,
            "frac_alive": 1 - e.density.dead_fraction,
            **_weights(dictionary),
        },
    }
    if e.shrinkage is not None:
        scales = {"relative_reconstruction_bias": e.shrinkage.r}
        metrics["shrinkage"] = scales if e.norm_ratio is None else scales | {"l2_ratio": e.norm_ratio.value}
    if e.loss is not None:
        loss = e.loss
        by_zero = loss.added_by_zero.value
        metrics["model_performance_preservation"] = {
            "ce_loss_with_sae": loss.clean + loss.added.value,
            "ce_loss_without_sae": loss.clean,
            "ce_loss_with_ablation": loss.clean + by_zero,
            **({} if loss.fraction_of_zero is None else {"ce_loss_score": 1 - loss.fraction_of_zero.value}),
        }
        behaviour = {"kl_div_with_sae": loss.kl.value}
        if loss.kl_by_zero is not None:
            behaviour["kl_div_with_ablation"] = loss.kl_by_zero.value
            if loss.kl_by_zero.value > 0:
                behaviour["kl_div_score"] = 1 - loss.kl.value / loss.kl_by_zero.value
        metrics["model_behavior_preservation"] = behaviour
    config = {"model_name": e.model, "random_seed": e.seed, "conventions": e.conventions, "tokens": e.token_policy}
    return saebench_file("core", metrics, config=config, dictionary=dictionary, name=name)


def write_saebench(folder: str | Path, file: dict[str, Any], name: str) -> Path:
    """Write a result file under the name that its readers look for."""
    import json

    path: Path = Path(folder) / str(file["eval_type_id"]) / f"{name.replace('/', '_')}_custom_sae_eval_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(file, indent=2), encoding="utf-8")
    return path


def _weights(dictionary: AbstractDictionary) -> dict[str, float]:
    """Mean over latents of the largest cosine to another one: of atoms, and of encoder columns where there are any."""
    found = {"average_max_decoder_cosine_sim": nearest_cosine(dictionary.atoms)}
    if has_encoder(dictionary):
        encoder, _ = encoder_weights(dictionary)
        found["average_max_encoder_cosine_sim"] = nearest_cosine(encoder.T)
    return found


@torch.no_grad()
def nearest_cosine(rows: torch.Tensor) -> float:
    """Mean over rows of the largest cosine to another row, in blocks."""
    unit = torch.nn.functional.normalize(rows.detach().float(), dim=1)
    total = 0.0
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        total += block.max(dim=1).values.double().sum().item()
    return total / len(unit)


def _version() -> str:
    from importlib.metadata import version

    return version("sparsight")
