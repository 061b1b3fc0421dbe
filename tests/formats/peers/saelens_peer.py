"""Run by a Python that has SAELens: writes its own dictionaries, and codes with ours that were exported to it.

    python saelens_peer.py FOLDER

Writes FOLDER/theirs/NAME: a dictionary as SAELens writes it, and `expected.safetensors` with what SAELens makes of it.
Reads FOLDER/ours/NAME and its `inputs.safetensors`, and writes `seen.safetensors` beside them.
"""

import copy
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file

D, M, D_OUT = 12, 40, 10


def generator(seed):
    return torch.Generator().manual_seed(seed)


def shaken(sae, seed=0):
    """Every parameter away from its start; rows of the decoder of norms between 0.3 and 3 or so."""
    g = generator(seed)
    for name, parameter in sae.named_parameters():
        noise = torch.randn(parameter.shape, generator=g).to(parameter)
        if name == "W_dec":
            rows = torch.nn.functional.normalize(noise, dim=-1)
            parameter.data = rows * (1.5 * torch.rand(len(rows), 1, generator=g) + 0.3).to(rows)
        elif name == "W_enc":
            parameter.data = noise / D**0.5
        elif name == "threshold":
            parameter.data = 0.4 * noise.abs()
        else:
            parameter.data = 0.3 * noise
    return sae


def metadata(**more):
    return SAEMetadata(model_name="gpt2-small", hook_name="blocks.5.hook_resid_post", prepend_bos=False, **more)


def inference(architecture, **options):
    sae_class, config_class = get_sae_class(architecture)
    options.setdefault("metadata", metadata())
    return shaken(sae_class(config_class(d_in=D, d_sae=M, **options)))


def training(architecture, **options):
    sae_class, config_class = get_sae_training_class(architecture)
    return shaken(sae_class(config_class(d_in=D, d_sae=M, metadata=metadata(), **options)))


def inputs(seed=1):
    return 0.5 + torch.randn(64, D, generator=generator(seed))


@torch.no_grad()
def seen(sae, x, scaler=None):
    """Codes as the lengths of what each latent writes into raw activations, and the reconstruction."""
    scaler = scaler or ActivationScaler()
    x = x.to(sae.W_dec.dtype)
    scaled = scaler.scale(x)
    f = sae.encode(scaled)
    y = sae(scaled) if hasattr(sae, "W_skip") else sae.decode(f)
    written = sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True) if rescales(sae) else sae.W_dec
    if scaler.whitening is not None:
        written = written @ scaler.whitening.inverse_matrix.to(written.dtype)
    if scaler.scaling_factor is not None:
        written = written / scaler.scaling_factor
    found = {"x": x, "values": f * written.norm(dim=-1), "y": scaler.unscale(y)}
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def rescales(sae):
    return getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)


def keep(folder, name, sae, *, final=False, scaler=None, of=None, dtype=None):
    """Save a dictionary and what SAELens, having loaded it again, makes of the same inputs."""
    out = folder / "theirs" / name
    (sae.save_inference_model if final else sae.save_model)(out)
    if scaler is not None:
        scaler.save(str(out / "activation_scaler.json"))
    again = of if of is not None else SAE.load_from_disk(out, dtype=dtype)
    save_file(seen(again, inputs(), scaler), out / "expected.safetensors")


def whitening():
    g = generator(5)
    matrix = torch.randn(D, D, generator=g, dtype=torch.float64) / 3 + torch.eye(D, dtype=torch.float64)
    return ActivationWhitening(torch.randn(D, generator=g, dtype=torch.float64), matrix, torch.linalg.inv(matrix))


def write_theirs(folder):
    for architecture in ("standard", "gated", "jumprelu"):
        for subtracts in (True, False):
            name = architecture if subtracts else f"{architecture}-no-input-offset"
            keep(folder, name, inference(architecture, apply_b_dec_to_input=subtracts))
    keep(folder, "topk", inference("topk", k=6, rescale_acts_by_decoder_norm=True))
    keep(folder, "topk-ranked-without-norms", inference("topk", k=6, rescale_acts_by_decoder_norm=False))
    keep(folder, "topk-bfloat16", inference("topk", k=6, dtype="bfloat16"), dtype="float32")
    keep(folder, "topk-no-input-offset", inference("topk", k=6, apply_b_dec_to_input=False))
    at_heads = SAEMetadata(model_name="gpt2-small", hook_name="blocks.3.attn.hook_z", prepend_bos=True)
    heads = inference("standard", reshape_activations="hook_z", metadata=at_heads)
    keep(folder, "heads", heads, of=flat(heads))
    write_trained(folder)
    write_transcoders(folder)
    rules = {"max_iterations": 5, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    pursuit = inference("matching_pursuit", **rules)
    pursuit.W_dec.data = torch.nn.functional.normalize(pursuit.W_dec.data, dim=-1)
    keep(folder, "matching-pursuit", pursuit)
    # As they come by default: rows of any norm, until a step finds nothing new or little is left.
    keep(folder, "matching-pursuit-default", inference("matching_pursuit"))
    limited = inference("matching_pursuit", residual_threshold=1.5, stop_on_duplicate_support=False)
    keep(folder, "matching-pursuit-limited", limited)
    keep(folder, "abstopk", inference("abstopk", k=6))
    for mode in ("layer_norm", "constant_norm_rescale"):
        keep(folder, mode, inference("standard", normalize_activations=mode))


def flat(sae):
    sae.turn_off_forward_pass_hook_z_reshaping()
    return sae


def write_trained(folder):
    """What training leaves: finished dictionaries, and checkpoints with a normalisation beside them."""
    for name in ("standard", "gated", "jumprelu"):
        keep(folder, f"trained-{name}", training(name), final=True)
    keep(folder, "trained-topk", folded(training("topk", k=6)), final=True)
    widths = {"matryoshka_widths": [8, 20, M]}
    for name, options in (("batchtopk", {}), ("matryoshka_batchtopk", widths)):
        sae = training(name, k=6.0, **options)
        sae.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
        keep(folder, f"trained-{name}", folded(sae), final=True)
    scaler = ActivationScaler(scaling_factor=2.5)
    for name in ("standard", "gated", "jumprelu", "topk"):
        options = {"k": 6} if name == "topk" else {}
        sae = training(name, normalize_activations="expected_average_only_in", **options)
        keep(folder, f"checkpoint-{name}", sae, scaler=scaler, of=sae)
    whitened = ActivationScaler(whitening=whitening())
    for name in ("standard", "gated", "topk"):
        options = {"k": 6} if name == "topk" else {}
        options["apply_b_dec_to_input"] = name == "topk"
        sae = training(name, normalize_activations="covariance_whitening", **options)
        # There and back through a matrix and its inverse costs float32 two digits: its own rounding is kept out.
        exact = copy.deepcopy(sae).to(torch.float64)
        keep(folder, f"checkpoint-whitened-{name}", sae, scaler=whitened, of=exact)
    write_batchtopk_checkpoint(folder, scaler)


def folded(sae):
    sae.fold_W_dec_norm()
    return sae


def write_batchtopk_checkpoint(folder, scaler):
    """In training it selects over the batch; what it does afterwards is what its finished file does."""
    sae = training("batchtopk", k=6.0, normalize_activations="expected_average_only_in")
    sae.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
    keep(folder, "checkpoint-batchtopk", sae, scaler=scaler, of=sae)
    sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    finished = folder / "finished"
    folded(sae).save_inference_model(finished)
    expected = seen(SAE.load_from_disk(finished), inputs())
    save_file(expected, folder / "theirs/checkpoint-batchtopk/expected.safetensors")


def write_transcoders(folder):
    where = metadata(hook_name_out="blocks.5.hook_mlp_out")
    for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        keep(folder, name, inference(name, d_out=D_OUT, apply_b_dec_to_input=False, metadata=where))


def read_ours(folder):
    for ours in sorted((folder / "ours").iterdir()):
        sae = SAE.load_from_disk(ours)
        found = seen(flat(sae), load_file(ours / "inputs.safetensors")["x"])
        save_file(found, ours / "seen.safetensors")


if __name__ == "__main__":
    read_ours(Path(sys.argv[1]))
    write_theirs(Path(sys.argv[1]))
