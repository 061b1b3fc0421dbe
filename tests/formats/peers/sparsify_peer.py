"""Run by a Python that has eai-sparsify: writes its own sparse coders, and codes with ours that were exported to it.

    python sparsify_peer.py FOLDER

Writes FOLDER/theirs/NAME/layers.5: a coder as sparsify writes it, and `expected.safetensors` with what it makes of it.
Reads FOLDER/ours/NAME and its `inputs.safetensors`, and writes `seen.safetensors` beside them.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

D, M, K = 12, 40, 5


def coder(dtype=torch.float32, **options):
    """Every parameter away from its start; rows of the decoder of norm 1 where sparsify would keep them so."""
    cfg = SparseCoderConfig(k=K, **{"num_latents": M, **options})
    sae = SparseCoder(D, cfg, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    for name, parameter in sae.named_parameters():
        parameter.data = (torch.randn(parameter.shape, generator=g) / (D**0.5 if "encoder.weight" in name else 2)).to(
            dtype
        )
    if cfg.normalize_decoder and not cfg.transcode:
        sae.set_decoder_norm_to_unit_norm()
    return sae


@torch.no_grad()
def seen(sae, x):
    """Codes as the lengths of what each latent writes, and the reconstruction."""
    sae = sae.float()
    found = sae.encode(x)
    values = torch.zeros(len(x), sae.num_latents).scatter_(1, found.top_indices, found.top_acts)
    y = sae.decode(found.top_acts, found.top_indices)
    if sae.W_skip is not None:
        y = y + x @ sae.W_skip.mT
    return {"x": x, "values": values * sae.W_dec.norm(dim=1), "y": y}


def keep(folder, name, sae):
    out = folder / "theirs" / name / "layers.5"
    sae.save_to_disk(out)
    (out.parent / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 2048}))
    x = 0.5 + torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    found = seen(SparseCoder.load_from_disk(out), x)
    save_file({k: v.contiguous() for k, v in found.items()}, out / "expected.safetensors")


def write_theirs(folder):
    keep(folder, "autoencoder", coder())
    keep(folder, "expanded", coder(num_latents=0, expansion_factor=3))
    keep(folder, "free-norms", coder(normalize_decoder=False))
    keep(folder, "multi-topk", coder(multi_topk=True))
    keep(folder, "skip", coder(skip_connection=True))
    keep(folder, "bfloat16", coder(dtype=torch.bfloat16))
    keep(folder, "transcoder", coder(transcode=True))
    keep(folder, "transcoder-skip", coder(transcode=True, skip_connection=True))
    keep(folder, "groupmax", coder(activation="groupmax"))


def read_ours(folder):
    for ours in sorted((folder / "ours").iterdir()):
        found = seen(SparseCoder.load_from_disk(ours), load_file(ours / "inputs.safetensors")["x"])
        save_file({k: v.contiguous() for k, v in found.items()}, ours / "seen.safetensors")


if __name__ == "__main__":
    read_ours(Path(sys.argv[1]))
    write_theirs(Path(sys.argv[1]))
