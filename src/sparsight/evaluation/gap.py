"""Training documents against held-out ones: has the dictionary learnt the documents, or what they are drawn from?"""

import torch

from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation import sums as terms
from sparsight.evaluation.coders import Code
from sparsight.evaluation.core_records import GapRecord
from sparsight.evaluation.reading import row_blocks
from sparsight.evaluation.record_values import Drawn, Resampling, ratio
from sparsight.evaluation.sides import Reading
from sparsight.evaluation.sums import Sums
from sparsight.evaluation.token_policy import TokenPolicy


def heldout_gap(
    dictionary: AbstractDictionary,
    train: Reading,
    code: Code,
    heldout: Drawn,
    resampling: Resampling,
    *,
    n_tokens: int,
    policy: TokenPolicy,
    batch_size: int = 4096,
) -> GapRecord:
    """The gap, from about `n_tokens` training tokens spread evenly.

    Args:
        dictionary: As trained.
        train: The training side of the store.
        code: As for the held-out side.
        heldout: Sums of the held-out side.
        resampling: How intervals are drawn; training documents apart from held-out ones.
        n_tokens: Of the training side.
        policy: Which tokens count, as on the held-out side.
        batch_size: Rows coded at once.
    Raises:
        UndefinedMetric: no training token counts.
    """
    blocks = row_blocks(len(train.part), batch_size, n_tokens)
    device = dictionary.atoms.device
    frame = train.frame(blocks, device, lambda n: None, policy)
    sums = Sums(frame, dictionary.n_latents, train.weigh(dictionary.b_dec.detach()), policy)
    for block in blocks:
        x, y = train.rows(block, device)
        z = code(x)
        with torch.no_grad():
            y_hat = train.weigh(dictionary.reconstruct(x, z))
        sums.add(y, y_hat, z, train.facts(block, y, policy, frame.longest, []))
    fvu, l0 = ratio(terms.RESIDUAL, terms.CENTRED), ratio(terms.LATENTS, terms.TOKENS)
    drawn = resampling.over(sums.documents, apart=True)
    return GapRecord(
        n_train=sums.frame.n,
        n_heldout=int(heldout.total[terms.TOKENS]),
        fvu_train=drawn.estimate(fvu),
        fvu_heldout=heldout.estimate(fvu),
        fvu_gap=heldout.minus(drawn, fvu),
        l0_train=float(l0(drawn.total)),
        l0_heldout=float(l0(heldout.total)),
    )
