"""Run by a Python that has dictionary_learning: trains with all its trainers, and codes with what we exported to it.

    python dictionary_learning_peer.py FOLDER

Writes FOLDER/theirs/NAME: `ae.pt` and `config.json` of a short training, and `expected.safetensors` with what
dictionary_learning makes of it. Reads FOLDER/ours/NAME, writes `seen.safetensors` there.
"""

import copy
import shutil
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

D, M, STEPS = 12, 40, 40


class Activations:
    """Fresh batches each time, as a training scales them in place."""

    def __init__(self):
        self.config = {"d_submodule": D, "io": "out", "ctx_len": 128}

    def __iter__(self):
        g = torch.Generator().manual_seed(0)
        basis = torch.randn(30, D, generator=torch.Generator().manual_seed(5))
        for _ in range(STEPS + 1):
            chosen = torch.rand(256, 30, generator=g) * (torch.rand(256, 30, generator=g) < 0.1)
            yield 4 * chosen @ basis + 1


SHARED = {
    "activation_dim": D,
    "dict_size": M,
    "layer": 3,
    "lm_name": "EleutherAI/pythia-70m-deduped",
    "device": "cpu",
    "seed": 1,
    "steps": STEPS,
    "lr": 1e-2,
    "warmup_steps": 2,
}
NAMED = {"submodule_name": "resid_post_layer_3"}
WARM = {"sparsity_warmup_steps": 3}
ANNEAL = {"anneal_start": 20, "n_sparsity_updates": 5, "p_end": 0.2}
TRAINERS = {
    "standard": (StandardTrainer, {**WARM, **NAMED, "l1_penalty": 0.05}),
    "april": (StandardTrainerAprilUpdate, {**WARM, **NAMED, "l1_penalty": 0.05}),
    "gated": (GatedSAETrainer, {**WARM, **NAMED, "l1_penalty": 0.05}),
    "p_anneal": (PAnnealTrainer, {**WARM, **NAMED, **ANNEAL}),
    "gated_anneal": (GatedAnnealTrainer, {**WARM, **ANNEAL}),
    "top_k": (TopKTrainer, {**NAMED, "k": 6, "threshold_start_step": 5}),
    "batch_top_k": (BatchTopKTrainer, {**NAMED, "k": 6, "threshold_start_step": 5}),
    "matryoshka": (
        MatryoshkaBatchTopKTrainer,
        {**NAMED, "k": 6, "threshold_start_step": 5, "group_fractions": [0.25, 0.25, 0.5]},
    ),
    "jump_relu": (JumpReluTrainer, {**WARM, **NAMED, "target_l0": 6, "bandwidth": 0.05}),
    "unset_threshold": (BatchTopKTrainer, {**NAMED, "k": 6, "threshold_start_step": 10_000}),
}


def train(folder, normalised, names):
    configs = [copy.deepcopy({"trainer": TRAINERS[n][0], **SHARED, **TRAINERS[n][1]}) for n in names]
    trainSAE(
        Activations(),
        configs,
        STEPS,
        save_dir=str(folder / "runs"),
        save_steps=[20],
        normalize_activations=normalised,
        device="cpu",
    )
    for i, name in enumerate(names):
        target = folder / "theirs" / (name if normalised else f"{name}-raw")
        shutil.copytree(folder / "runs" / f"trainer_{i}", target)
    shutil.rmtree(folder / "runs")


@torch.no_grad()
def seen(dictionary, x):
    """Codes as the lengths of what each latent writes, and the reconstruction."""
    f = dictionary.encode(x)
    basis = dictionary.decode(torch.eye(f.shape[1])) - dictionary.decode(torch.zeros(1, f.shape[1]))
    found = {"x": x, "values": f * basis.double().norm(dim=1).float(), "y": dictionary.decode(f)}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def inputs():
    return next(iter(Activations()))[:64]


def write_theirs(folder):
    train(folder, True, list(TRAINERS))
    train(folder, False, ["standard", "april", "gated", "top_k", "batch_top_k", "jump_relu"])
    for out in (folder / "theirs").iterdir():
        save_file(seen(load_dictionary(str(out), "cpu")[0], inputs()), out / "expected.safetensors")
    # Classes that no trainer of today writes, or whose columns loading makes unit.
    g = torch.Generator().manual_seed(2)
    for name, kind in (("new", AutoEncoderNew), ("free-columns", AutoEncoder)):
        dictionary = kind(D, M)
        for parameter in dictionary.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=g)
        out = folder / "theirs" / name
        out.mkdir()
        torch.save(dictionary.state_dict(), out / "ae.pt")
        save_file(seen(dictionary, inputs()), out / "expected.safetensors")


def read_ours(folder):
    for ours in sorted((folder / "ours").iterdir()):
        dictionary, _ = load_dictionary(str(ours), "cpu")
        save_file(seen(dictionary, load_file(ours / "inputs.safetensors")["x"]), ours / "seen.safetensors")


if __name__ == "__main__":
    read_ours(Path(sys.argv[1]))
    write_theirs(Path(sys.argv[1]))
