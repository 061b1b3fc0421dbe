"""One contender of benchmarks/step.py, in a process of its own and in whatever environment it is installed.

    python benchmarks/step_worker.py CONTENDER ARCHITECTURE D N_LATENTS K BATCH THREADS N_DEAD

Answers each line on stdin with one line of JSON: `steps N` takes N steps and says how long they took;
`gradients FOLDER` reads weights and a batch from FOLDER and writes its gradients of the reconstruction there;
`phases N` takes N steps and says what a step spends in each of its loops (ours only); `memory` says the largest
memory ever held. Each steps as its users would run it: its own trainer's step and defaults, float32. The first N_DEAD
latents are kept from firing and count as dead (TopK only), so that auxiliary losses work on them.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEVER = 10**9  # tokens or batches since a latent fired
Step = Callable[[Tensor, int], None]
Contender = tuple[Step, Callable[[dict[str, Tensor]], dict[str, Tensor]]]


def activations(d: int, batch: int) -> list[Tensor]:
    """Batches of sparse sums of planted directions, mean 0 and unit variance: no latent dies, none is trivial."""
    g = torch.Generator().manual_seed(12)
    directions = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=g), dim=1)
    batches = []
    for _ in range(4):
        latents = torch.randint(0, 4 * d, (batch, 24), generator=g)
        weights = torch.rand(batch, 24, generator=g)
        x = torch.nn.functional.embedding_bag(latents, directions, per_sample_weights=weights, mode="sum")
        x = x + 0.05 * torch.randn(batch, d, generator=g)
        x = x - x.mean(dim=0)
        batches.append(x / x.square().sum(dim=1).mean().sqrt())
    return batches


def sparsight(architecture: str, step: str, d: int, m: int, k: int, batch: int, n_dead: int) -> tuple[Contender, Any]:
    """Also the loops of its compiled step, if it has one."""
    from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
    from sparsight.training import Training
    from sparsight.training.member import Member

    configs: dict[str, Any] = {
        "topk": lambda: TopK(m, k),
        "batchtopk": lambda: BatchTopK(m, k),
        "matryoshka": lambda: Matryoshka(m, k, widths=(m // 8, m // 4, m // 2)),
        "jumprelu": lambda: JumpReLU(m, target_l0=float(k)),
        "relu": lambda: ReLU(m, 0.05),
        "gated": lambda: Gated(m, 0.05),
    }
    training = Training(n_tokens=10**9, batch_size=batch, step=step)
    member = Member("it", configs[architecture](), d, training, torch.device("cpu"))
    rule: Any = member.rule
    penalised = architecture in ("relu", "gated")
    if penalised:
        silence(member.dictionary, k, activations(d, batch)[0])
    if n_dead:
        kill(member.dictionary.b_enc, n_dead)
        member.silent[:n_dead] = NEVER

    def gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
        dictionary: Any = member.dictionary
        with torch.no_grad():
            dictionary.atoms.copy_(given["atoms"])
            dictionary.W_enc.copy_(given["W_enc"])
        if penalised:
            silence(dictionary, k, given["x"])
        rule._written()
        rule.optimizer.clear_gradients()
        rule._gradients(given["x"], torch.zeros(m, dtype=torch.bool), 1.0)
        if penalised:
            silence(dictionary, k, activations(d, batch)[0])
        if rule.compiled is None:
            learnt = {name: p.grad for name, p in dictionary.named_parameters() if p.grad is not None}
            return {name: gradient.contiguous() for name, gradient in learnt.items() if name != "b_dec"}
        return {name: t.contiguous() for name, t in rule.compiled.dense_gradients().items() if name != "b_dec"}

    loops = None if rule.compiled is None else rule.compiled.loops
    return (lambda x, number: member.step(x, 1e-4, 1.0) and None, gradients), loops


def phases(step: Step, batches: list[Tensor], loops: Any, n: int) -> dict[str, float]:
    """Median seconds that a step spends in each loop, in the order of their first calls; the rest is torch's."""
    seconds: list[dict[str, float]] = []

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            started = time.perf_counter()
            found = work(*given)
            seconds[-1][name] = seconds[-1].get(name, 0.0) + time.perf_counter() - started
            return found

        return call

    for name, work in [(name, getattr(loops, name)) for name in dir(loops) if not name.startswith("_")]:
        if callable(work):
            setattr(loops, name, timed(name, work))
    for number in range(n):
        seconds.append({})
        started = time.perf_counter()
        step(batches[number % len(batches)], number)
        seconds[-1]["the rest"] = time.perf_counter() - started - sum(seconds[-1].values())
    return {name: sorted(of_step[name] for of_step in seconds)[n // 2] for name in seconds[0]}


def kill(offset: Tensor, n_dead: int) -> None:
    """Keep the first latents from firing: no pre-activation of these batches comes near 10."""
    with torch.no_grad():
        offset[:n_dead] = -10.0


def silence(dictionary: Any, l0: int, x: Tensor) -> None:
    """Lower the offsets until about `l0` latents of a token are active, as they are when training has come so far."""
    offset = dictionary.b_enc if hasattr(dictionary, "b_enc") else dictionary.b_gate
    with torch.no_grad():
        pre = x[:64] @ dictionary.W_enc
        offset.fill_(-pre.flatten().topk(l0 * len(pre) + 1).values[-2:].mean())  # between two: no entry is at 0


def saelens(architecture: str, d: int, m: int, k: int, batch: int, n_dead: int) -> Contender:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    of: dict[str, Any] = {
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=m, k=k)),
        "batchtopk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d, d_sae=m, k=k)),
        "jumprelu": lambda: JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=d, d_sae=m)),
        "relu": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d, d_sae=m)),
        "gated": lambda: GatedTrainingSAE(GatedTrainingSAEConfig(d_in=d, d_sae=m)),
    }
    sae = of[architecture]()
    config = SAETrainerConfig(10**9, batch, lr=1e-4, lr_end=1e-5, logger=LoggingConfig(log_to_wandb=False))
    trainer: Any = SAETrainer(config, sae, iter(()))
    if n_dead:
        kill(sae.b_enc, n_dead)
        trainer.n_forward_passes_since_fired[:n_dead] = NEVER

    def gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
        if architecture in ("jumprelu", "relu", "gated"):
            return {}  # thresholds and penalties of its own
        with torch.no_grad():
            sae.W_dec.copy_(given["atoms"])
            sae.W_enc.copy_(given["W_enc"])
            sae.b_enc.zero_()
            sae.b_dec.zero_()
        sae.zero_grad()
        x_hat = sae(given["x"])
        (given["x"] - x_hat).square().sum(dim=1).mean().backward()
        return {"atoms": sae.W_dec.grad, "W_enc": sae.W_enc.grad, "b_enc": sae.b_enc.grad}

    return lambda x, number: trainer.step(x) and None, gradients


def dictionary_learning(architecture: str, d: int, m: int, k: int, batch: int, n_dead: int) -> Contender:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    of: dict[str, Any] = {
        "topk": (TopKTrainer, {"k": k}),
        "batchtopk": (BatchTopKTrainer, {"k": k}),
        "matryoshka": (MatryoshkaBatchTopKTrainer, {"k": k, "group_fractions": [1 / 8, 1 / 8, 1 / 4, 1 / 2]}),
        "jumprelu": (JumpReluTrainer, {"target_l0": float(k)}),
        "relu": (StandardTrainer, {"l1_penalty": 0.05, "warmup_steps": 10, "sparsity_warmup_steps": None}),
        "gated": (GatedSAETrainer, {"l1_penalty": 0.05, "warmup_steps": 10, "sparsity_warmup_steps": None}),
    }
    trainer_class, more = of[architecture]
    trainer = trainer_class(
        steps=10**6, activation_dim=d, dict_size=m, layer=0, lm_name="none", device="cpu", lr=1e-4, seed=0, **more
    )
    if n_dead:
        kill(trainer.ae.encoder.bias, n_dead)
        trainer.num_tokens_since_fired[:n_dead] = NEVER

    def gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
        ae = trainer.ae
        if architecture in ("matryoshka", "jumprelu", "relu", "gated"):
            return {}  # prefixes' losses weighted and divided otherwise; thresholds of its own
        with torch.no_grad():
            ae.decoder.weight.copy_(given["atoms"].T)
            ae.encoder.weight.copy_(given["W_enc"].T)
            ae.encoder.bias.zero_()
            ae.b_dec.zero_()
        ae.zero_grad()
        code = ae.encode(given["x"]) if architecture == "topk" else ae.encode(given["x"], use_threshold=False)
        (given["x"] - ae.decode(code)).square().sum(dim=1).mean().backward()
        encoder, decoder = ae.encoder, ae.decoder
        found = {"atoms": decoder.weight.grad.T, "W_enc": encoder.weight.grad.T, "b_enc": encoder.bias.grad}
        return {name: gradient.contiguous() for name, gradient in found.items()}

    return lambda x, number: trainer.update(number, x), gradients


def sparsify(architecture: str, d: int, m: int, k: int, batch: int, n_dead: int) -> Contender:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder: Any = SparseCoder(d, SparseCoderConfig(num_latents=m, k=k), device="cpu", dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-4)
    dead = torch.arange(m) < n_dead
    kill(coder.encoder.bias, n_dead)
    silent = torch.zeros(m, dtype=torch.int64)

    def step(x: Tensor, number: int) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=dead)
        fired = torch.zeros(m, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        silent.add_(len(x))[fired] = 0
        (out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    def gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            coder.W_dec.copy_(given["atoms"])
            coder.encoder.weight.copy_(given["W_enc"].T)
            coder.encoder.bias.zero_()
            coder.b_dec.zero_()
        coder.zero_grad()
        coder(given["x"]).fvu.backward()
        encoder = coder.encoder
        return {"atoms": coder.W_dec.grad, "W_enc": encoder.weight.grad.T.contiguous(), "b_enc": encoder.bias.grad}

    return step, gradients


def peak_bytes() -> int:
    """Of this program alone: `ru_maxrss` begins with what the parent had when it started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    name, architecture = sys.argv[1:3]
    d, m, k, batch, threads, n_dead = map(int, sys.argv[3:])
    torch.set_num_threads(threads)
    batches, loops = activations(d, batch), None
    if name.startswith("sparsight"):
        kind = "dense" if name.endswith("dense") else "sparse"
        (step, gradients), loops = sparsight(architecture, kind, d, m, k, batch, n_dead)
    else:
        builders = {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
        step, gradients = builders[name](architecture, d, m, k, batch, n_dead)
    number = 0
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        answer: dict[str, Any] = {}
        if command == "steps":
            started = time.perf_counter()
            for _ in range(int(rest[0])):
                step(batches[number % len(batches)], number)
                number += 1
            answer["seconds"] = time.perf_counter() - started
        elif command == "phases":
            answer["seconds"] = {} if loops is None else phases(step, batches, loops, int(rest[0]))
        elif command == "gradients":
            folder = Path(rest[0])
            given = torch.load(folder / "given.pt", weights_only=True)
            torch.save(gradients(given), folder / f"{name}.pt")
        else:
            answer["bytes"] = peak_bytes()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
